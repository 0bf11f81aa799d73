"""How often connections to servers were opened, and how many connections to a provider are in use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from taskflux.local.servers import ValkeyServer
from taskflux.providers import msg91, smtp
from taskflux.providers.email import Email
from taskflux.providers.msg91 import Msg91Settings
from taskflux.providers.sms import Sms
from taskflux.providers.smtp_session import SmtpSettings
from taskflux.store.accelerator import Accelerator
from taskflux.store.database import Database
from taskflux.store.errors import StoreUnavailable
from taskflux.store.settings import RedisSettings
from taskflux.store.upkeep import SQL
from taskflux.stream.positions import Positions
from taskflux.stream.producer import Producer
from taskflux.stream.settings import KafkaSettings
from taskflux.telemetry.instruments import registry
from tests.conftest import NewDatabase
from tests.integration.providers.flow_api import FlowApi, flow_api
from tests.integration.providers.smtp_server import Postbox, smtp_server
from tests.integration.stream.patience import eventually

MAIL = Email(to=["ann@example.org"], subject="Hello", body="Hi")


@pytest.fixture
async def api() -> AsyncIterator[FlowApi]:
    async with flow_api() as api:
        yield api


def opened(server: str) -> float:
    return registry().get_sample_value("taskflux_connections_opened_total", {"server": server}) or 0.0


def in_use(provider: str) -> tuple[float | None, float | None]:
    """Those used, and those free."""
    name = "taskflux_provider_connections"
    used, free = ({"provider": provider, "state": state} for state in ("used", "free"))
    return registry().get_sample_value(name, used), registry().get_sample_value(name, free)


@pytest.mark.skipif("TASKFLUX_TEST_PGBOUNCER" in os.environ, reason="PgBouncer's is lost then, and not ours")
async def test_a_replaced_connection_to_postgresql_is_counted_again(new_database: NewDatabase) -> None:
    settings = await new_database()
    database = Database(settings, pool_size=1, name="counted")
    await database.open()
    before = opened("postgresql")
    for _ in range(3):
        await database.fetch(SQL["measure_types"])
    assert opened("postgresql") == before + 1
    other = await asyncpg.connect(settings.dsn.get_secret_value())
    await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'counted'")
    await other.close()
    async with asyncio.timeout(20):
        while opened("postgresql") == before + 1:
            try:
                await database.fetch(SQL["measure_types"])
            except StoreUnavailable:
                continue
    assert opened("postgresql") == before + 2
    await database.close()


async def test_connections_to_redis_are_counted(valkey: ValkeyServer) -> None:
    before = opened("redis")
    accelerator = Accelerator(RedisSettings.model_validate({"url": valkey.url}))
    await accelerator.open()
    for _ in range(3):
        await accelerator.cache("default", uuid7(), b"{}")
    assert opened("redis") == before + 1
    await accelerator.close()


async def test_clients_that_reach_kafka_are_counted(kafka_settings: KafkaSettings) -> None:
    before = opened("kafka")
    positions = Positions(kafka_settings)
    for _ in range(2):
        await positions.log_id("none")
    assert opened("kafka") == before + 1
    await positions.close()
    await positions.log_id("none")
    assert opened("kafka") == before + 2
    producer = Producer(kafka_settings)
    await producer.start()

    async def connected() -> bool:
        return opened("kafka") == before + 3

    await eventually(connected)
    await producer.stop()
    await positions.close()


async def test_smtp_connections_are_counted_and_shown_in_use() -> None:
    before = opened("smtp")
    async with smtp_server(Postbox()) as postbox:
        settings = SmtpSettings(host="127.0.0.1", port=postbox.port, tls="none", sender="a@example.org", connections=3)
        async with smtp.connect.connect(settings) as mailer:
            used, free = in_use("smtp")
            for number in range(2):
                await mailer.send(MAIL, message_id=str(number), date=datetime.now(UTC))
            assert opened("smtp") == before + 1
            async with mailer._pool.connection():
                assert in_use("smtp") == ((used or 0.0) + 1, (free or 0.0) - 1)
            assert in_use("smtp") == (used, free)
            assert free is not None
            assert free >= 3


async def test_connections_to_msg91_are_counted(api: FlowApi) -> None:
    before = opened("msg91")
    settings = Msg91Settings(base_url=api.url, auth_key=SecretStr("key"), template_id="5f1a2b3c4d5e6f7a8b9c0d1e")
    async with msg91.connect.connect(settings) as sender:
        for number in range(2):
            await sender.send(Sms(mobile="919876543210", name="Ann"), crqid=str(number))
    assert opened("msg91") == before + 1
