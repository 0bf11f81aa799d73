"""Kafka's own delay before the first member of a group gets its partitions (3 s): a handler works meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import pytest
import pytest_asyncio
from aiokafka.errors import TopicAuthorizationFailedError

from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import OutRecord, Record
from taskflux.stream.internals import BoundedConsumer
from taskflux.stream.positions import Positions
from taskflux.stream.producer import Producer
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from tests.integration.stream.patience import eventually, take
from tests.kafka.broker import KafkaBroker

TOPIC, GROUP = "tasks.email", "taskflux.email"
DELAY = 3000


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def waiting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaSettings]:
    """A broker with Kafka's default delay, and three records that wait."""
    async with KafkaBroker(tmp_path_factory.mktemp("kafka") / "data", rebalance_delay=DELAY) as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, partitions=3)
        await ensure_topics(settings, ["email"])
        producer = Producer(settings)
        await producer.start()
        await producer.publish([OutRecord(TOPIC, key, key) for key in (b"a", b"b", b"c")])
        await producer.stop()
        yield settings


def values(records: list[Record]) -> list[bytes]:
    return sorted(record.value or b"" for record in records)


async def test_the_first_member_of_a_group_reads_before_kafka_lets_it_join(waiting: KafkaSettings) -> None:
    positions, consumer, began = Positions(waiting), Consumer(waiting, GROUP, TOPIC), monotonic()
    await consumer.start()
    early = await take(consumer, 3)
    assert values(early) == [b"a", b"b", b"c"]
    assert consumer.assigned == frozenset(), "it has not joined yet"
    assert monotonic() - began < DELAY / 1000
    consumer.note_done(early)
    await consumer.commit()
    assert await positions.lag(GROUP, TOPIC) == 3, "nothing is committed outside the group"
    await consumer.wait_joined()
    again = await take(consumer, 3)
    assert values(again) == [b"a", b"b", b"c"], "what was read outside the group comes again"
    consumer.note_done(again)

    async def all_is_committed() -> bool:
        return await positions.lag(GROUP, TOPIC) == 0

    await eventually(all_is_committed)
    second = Consumer(waiting, GROUP, TOPIC)
    await second.start()
    async with asyncio.timeout(30):
        await second.wait_joined()
    assert len(consumer.assigned | second.assigned) == 3
    await second.stop()
    await consumer.stop()
    await positions.close()


async def test_a_member_beside_others_waits_for_the_group(waiting: KafkaSettings) -> None:
    group = f"{GROUP}.two"
    both = [Consumer(waiting, group, TOPIC) for _ in range(2)]
    began = monotonic()
    for consumer in both:
        await consumer.start()
    found = await asyncio.gather(*(consumer.fetch(10, 1.0) for consumer in both))
    assert (found, monotonic() - began < DELAY / 1000) == ([[], []], True)
    async with asyncio.timeout(30):
        await asyncio.gather(*(consumer.wait_joined() for consumer in both))
    for consumer in both:
        await consumer.stop()


async def test_trouble_ends_a_first_look(waiting: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller, which asks again at once, must not be kept busy by an error until the group is joined."""
    asked = 0

    async def refused(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1
        raise TopicAuthorizationFailedError

    monkeypatch.setattr(BoundedConsumer, "getmany", refused)
    consumer = Consumer(waiting, f"{GROUP}.three", TOPIC)
    await consumer.start()
    async with asyncio.timeout(DELAY / 1000 - 0.5):
        while not asked:
            assert await consumer.fetch(10, 0.1) == []
        fetches = [await consumer.fetch(10, 0.1) for _ in range(5)]
    assert (asked, fetches, consumer.assigned) == (1, [[]] * 5, frozenset())
    await consumer.stop()
