"""Kafka's password changes while a producer and a consumer are connected: with renewed settings, both go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import OutRecord
from taskflux.stream.positions import Positions
from taskflux.stream.producer import Producer, Published
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from tests.integration.stream.patience import eventually, take
from tests.kafka.secured import PASSWORD, USERNAME, SecuredKafka

TOPIC, GROUP = "tasks.email", "taskflux.email"


@pytest.mark.usefixtures("no_outages")
async def test_a_password_that_changes_is_used_for_the_connections_from_then_on(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with SecuredKafka(tmp_path / "kafka", authority) as broker:
        open_settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, partitions=1, replication_factor=1)
        await ensure_topics(open_settings, ["email"])
        settings = open_settings.model_copy(
            update={
                "bootstrap_servers": broker.at("SASL"),
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_username": USERNAME,
                "sasl_password": SecretStr(PASSWORD),
            }
        )
        producer, consumer, positions = Producer(settings), Consumer(settings, GROUP, TOPIC), Positions(settings)
        await producer.start()
        await consumer.start()

        async def sent(key: bytes) -> bool:
            (outcome,) = await producer.publish([OutRecord(TOPIC, key, key)])
            return isinstance(outcome, Published)

        await eventually(lambda: sent(b"one"))
        async with asyncio.timeout(30):
            await consumer.wait_joined()
        assert [each.value for each in await take(consumer, 1)] == [b"one"]
        await broker.change_password("renewed-4d21")
        settings.sasl_password = SecretStr("renewed-4d21")
        await broker.stop()  # so that every connection has to be opened again
        await broker.start()
        await eventually(lambda: sent(b"two"))
        assert b"two" in [each.value for each in await take(consumer, 2)]
        assert await positions.log_id(TOPIC) is not None
        await consumer.stop()
        await producer.stop()
        await positions.close()
