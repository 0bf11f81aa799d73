"""Kafka for these tests: the session's broker, and one that may be killed."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from taskflux.local.servers import Broker
from taskflux.stream.producer import Producer
from taskflux.stream.settings import KafkaSettings


@pytest.fixture
def settings(kafka_settings: KafkaSettings) -> KafkaSettings:
    """The session's broker, with a prefix of the test's own."""
    return kafka_settings.model_copy(update={"topic_prefix": f"t{secrets.token_hex(4)}-", "partitions": 3})


@pytest.fixture
async def producer(settings: KafkaSettings) -> AsyncIterator[Producer]:
    producer = Producer(settings)
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[Broker]:
    """An embedded broker of the test's own, not started yet, to be killed and started again; it forgets everything."""
    broker = Broker(log=tmp_path / "tansu.log")
    yield broker
    await broker.stop()


@pytest.fixture
def mortal_settings(mortal: Broker) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=mortal.bootstrap_servers,
        partitions=2,
        idempotent=False,
        tansu=True,
        produce_timeout=2.0,
        fetch_max_wait_ms=20,
    )
