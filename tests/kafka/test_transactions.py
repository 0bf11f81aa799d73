"""Of a producer with transactions, what it has committed is taken, and nothing that it has aborted: on a real Kafka."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from taskflux.stream.consumer import Consumer
from taskflux.stream.settings import KafkaSettings
from tests.kafka.broker import KafkaBroker

TOPIC, GROUP = "tasks.paid", "taskflux.paid"
PLACE = TopicPartition(TOPIC, 0)


async def _make_topic(broker: KafkaBroker) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(TOPIC, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def _lag(broker: KafkaBroker) -> int:
    """What KEDA counts: from the group's commit to the end of the log."""
    async with AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers, group_id=GROUP, enable_auto_commit=False
    ) as asking:
        asking.assign([PLACE])
        end = (await asking.end_offsets([PLACE]))[PLACE]
        return int(end) - int(await asking.committed(PLACE) or 0)


async def test_aborted_records_are_not_delivered_and_leave_no_lag(tmp_path: Path) -> None:
    async with KafkaBroker(tmp_path / "kafka") as broker:
        await _make_topic(broker)
        producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id="shop")
        consumer = Consumer(KafkaSettings(bootstrap_servers=broker.bootstrap_servers), GROUP, TOPIC)
        await consumer.start()
        taken: list[bytes | None] = []
        try:
            async with producer:
                for number, ends in enumerate(["commit", "abort", "commit", "abort"]):
                    await producer.begin_transaction()
                    for part in ("a", "b"):
                        await producer.send_and_wait(TOPIC, f"{ends} {number}{part}".encode(), partition=0)
                    await (producer.commit_transaction() if ends == "commit" else producer.abort_transaction())
            async with asyncio.timeout(60):
                while len(taken) < 4 or await _lag(broker):
                    records = await consumer.fetch(100, 0.5)
                    taken += [record.value for record in records]
                    consumer.note_done(records)
        finally:
            await consumer.stop()
        assert taken == [b"commit 0a", b"commit 0b", b"commit 2a", b"commit 2b"]
