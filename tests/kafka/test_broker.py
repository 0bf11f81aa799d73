"""The Kafka that `make test-kafka` runs the integration suite against is a real one, and comes back with its log."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.kafka.broker import KafkaBroker

TOPIC = "tasks.kept"


async def _make_topic(broker: KafkaBroker) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(TOPIC, num_partitions=2, replication_factor=1)])
    finally:
        await admin.close()


async def _produce(broker: KafkaBroker, value: bytes) -> None:
    async with AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, enable_idempotence=True, request_timeout_ms=5000
    ) as producer:
        await asyncio.wait_for(producer.send_and_wait(TOPIC, value, partition=1), 20)


async def _take(broker: KafkaBroker, count: int) -> list[bytes | None]:
    """`count` records as a member of a group, committed."""
    async with AIOKafkaConsumer(
        TOPIC, bootstrap_servers=broker.bootstrap_servers, group_id="group", auto_offset_reset="earliest",
        enable_auto_commit=False,
    ) as consumer:  # fmt: skip
        taken = [(await asyncio.wait_for(consumer.getone(), 20)).value for _ in range(count)]
        await consumer.commit()
        assert await consumer.committed(TopicPartition(TOPIC, 1)) is not None
        return taken


async def test_records_and_offsets_outlive_a_killed_and_a_stopped_broker(tmp_path: Path) -> None:
    broker = KafkaBroker(tmp_path / "kafka")
    async with broker:
        await _make_topic(broker)
        await _produce(broker, b"one")
        assert await _take(broker, 1) == [b"one"]
        address = broker.bootstrap_servers

        broker.kill()
        assert not broker.running
        assert not await broker.answers()
        await broker.start()
        assert broker.bootstrap_servers == address
        await _produce(broker, b"two")
        assert await _take(broker, 1) == [b"two"]

        await broker.stop()
        await broker.start()
        await _produce(broker, b"three")
        assert await _take(broker, 1) == [b"three"]
