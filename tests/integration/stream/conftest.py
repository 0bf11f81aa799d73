"""Kafka for these tests: the embedded broker, or the one that `TASKFLUX_TEST_KAFKA` names."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from handlers.local.broker import Broker
from handlers.stream.producer import Producer
from handlers.stream.settings import KafkaSettings


@pytest.fixture(scope="session")
async def bootstrap_servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    external = os.environ.get("TASKFLUX_TEST_KAFKA")
    if external:
        yield external
        return
    broker = Broker(log=tmp_path_factory.mktemp("broker") / "tansu.log")
    await broker.start()
    yield broker.bootstrap_servers
    await broker.stop()


@pytest.fixture
def settings(bootstrap_servers: str) -> KafkaSettings:
    """Settings with a prefix of the test's own."""
    return KafkaSettings(
        bootstrap_servers=bootstrap_servers,
        topic_prefix=f"t{secrets.token_hex(4)}-",
        partitions=3,
        replication_factor=1,
        idempotent="TASKFLUX_TEST_KAFKA" in os.environ,
        fetch_max_wait_ms=20,
    )


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
        produce_timeout=2.0,
        fetch_max_wait_ms=20,
    )
