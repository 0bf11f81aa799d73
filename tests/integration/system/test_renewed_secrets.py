"""A server's password changes while a process is connected: with renewed settings, it goes on without a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio
import trustme
from pydantic import SecretStr
from redis.asyncio import Redis
from uuid_utils.compat import uuid7

from taskflux.local.servers import PostgresServer, ValkeyServer
from taskflux.providers import smtp
from taskflux.providers.smtp_session import SmtpSettings
from taskflux.store.accelerator import Accelerator
from taskflux.store.database import Database
from taskflux.store.errors import StoreError
from taskflux.store.settings import PostgresSettings, RedisSettings
from taskflux.store.tasks import TaskTypes
from taskflux.tasks.errors import Misconfigured
from tests.integration.providers.smtp_server import Postbox, smtp_server

pytestmark = pytest.mark.usefixtures("no_outages")


@pytest_asyncio.fixture
async def administer(postgres: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres.dsn)
    yield connection
    await connection.close()


async def test_postgresql_s_password(
    administer: asyncpg.Connection, postgres: PostgresServer, new_database: Callable[[], object]
) -> None:
    made = await new_database()  # type: ignore[misc]
    database_name = urlsplit(made.migrate_dsn.get_secret_value()).path
    at = f"127.0.0.1:{postgres.port}{database_name}?sslmode=disable"
    await administer.execute("CREATE ROLE rotating SUPERUSER LOGIN PASSWORD 'first'")
    settings = PostgresSettings.model_validate({"dsn": f"postgresql://rotating:first@{at}"})
    database = Database(settings, pool_size=1)
    await database.open()
    try:
        assert await TaskTypes(database).names() == []
        await administer.execute("ALTER ROLE rotating PASSWORD 'second'")
        assert await TaskTypes(database).names() == [], "an open connection stays"
        await administer.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'")
        with suppress(StoreError):  # the connection that was ended
            await TaskTypes(database).names()
        with pytest.raises(StoreError, match="password"):
            await TaskTypes(database).names()
        settings.dsn = SecretStr(f"postgresql://rotating:second@{at}")
        assert await TaskTypes(database).names() == []
    finally:
        await database.close()
        await administer.execute("DROP ROLE rotating")


async def test_redis_s_password(valkey: ValkeyServer) -> None:
    root, address = Redis.from_url(valkey.url), valkey.url.rpartition("@")[2].removeprefix("redis://")
    await root.execute_command("ACL", "SETUSER", "rotating", "on", ">first", "~*", "+@all")  # type: ignore[no-untyped-call]
    settings = RedisSettings.model_validate({"url": f"redis://rotating:first@{address}", "timeout": 5})
    accelerator, task = Accelerator(settings), uuid7()
    await accelerator.open()
    try:
        await accelerator.cache("default", task, b"{}")
        assert await accelerator.cached("default", task) == b"{}"
        await root.execute_command("ACL", "SETUSER", "rotating", "resetpass", ">second")  # type: ignore[no-untyped-call]
        await root.execute_command("CLIENT", "KILL", "USER", "rotating")  # type: ignore[no-untyped-call]
        settings.url = SecretStr(f"redis://rotating:second@{address}")
        assert await accelerator.cached("default", task) == b"{}"
        settings.url = None
        assert await accelerator.cached("default", task) is None, "there is no Redis any more"
        settings.url = SecretStr(f"redis://rotating:second@{address}")
        assert await accelerator.cached("default", task) == b"{}"
    finally:
        await accelerator.close()
        await root.execute_command("ACL", "DELUSER", "rotating")  # type: ignore[no-untyped-call]
        await root.aclose()


async def test_the_smtp_server_s_password_and_its_authority(tmp_path: Path) -> None:
    postbox, first, second = Postbox(("ann", "first")), trustme.CA(), trustme.CA()
    ca_file = tmp_path / "ca.crt"
    first.cert_pem.write_to_path(ca_file)
    certificate = first.issue_cert("127.0.0.1")
    async with smtp_server(postbox, tls="starttls", certificate=certificate):
        settings = SmtpSettings.model_validate(
            {
                "host": "127.0.0.1",
                "port": postbox.port,
                "sender": "ann@example.org",
                "username": "ann",
                "password": "first",
                "ca_file": str(ca_file),
            }
        )
        async with smtp.connect.connect(settings) as mailer:
            await mailer.check()
            postbox.credentials = ("ann", "second")
            with pytest.raises(Misconfigured):
                await mailer.check()
            settings.password = SecretStr("second")
            await mailer.check()
            second.cert_pem.write_to_path(ca_file)
            with pytest.raises(Misconfigured, match="certificate"):
                await mailer.check()
            first.cert_pem.write_to_path(ca_file)
            await mailer.check()
