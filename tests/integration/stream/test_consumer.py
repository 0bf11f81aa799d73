import asyncio
import logging
from collections.abc import Sequence

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from taskflux.local.servers import Broker
from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import OutRecord, Record
from taskflux.stream.positions import Positions
from taskflux.stream.producer import Producer, Published
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from taskflux.telemetry.instruments import registry
from tests.integration.stream.batches import batch, send_batch, with_broken_header
from tests.integration.stream.patience import committed, eventually, take


async def joined(settings: KafkaSettings, topic: str) -> Consumer:
    consumer = Consumer(settings, f"{settings.topic_prefix}group", topic)
    await consumer.start()
    async with asyncio.timeout(30):
        await consumer.wait_joined()
    return consumer


def rebalances() -> float:
    return registry().get_sample_value("taskflux_rebalances_total") or 0.0


async def send(producer: Producer, topic: str, *keys: bytes) -> list[Published]:
    outcomes = await producer.publish([OutRecord(topic, key, key) for key in keys])
    published = [outcome for outcome in outcomes if isinstance(outcome, Published)]
    assert len(published) == len(keys), outcomes
    return published


async def test_offsets_are_committed_from_the_logs_start_on_and_only_up_to_what_is_done(
    settings: KafkaSettings, producer: Producer
) -> None:
    await ensure_topics(settings, ["email"])
    topic, group = f"{settings.topic_prefix}tasks.email", f"{settings.topic_prefix}group"
    await send(producer, topic, b"a", b"b", b"c", b"d", b"e", b"f")
    positions = Positions(settings)
    consumer = await joined(settings, topic)
    assert consumer.assigned == {(topic, 0), (topic, 1), (topic, 2)}

    async def starts_are_committed() -> bool:
        return await committed(positions, group, topic) == {0: 0, 1: 0, 2: 0}

    await eventually(starts_are_committed)
    records = await take(consumer, 6)
    assert sorted(record.value or b"" for record in records) == [b"a", b"b", b"c", b"d", b"e", b"f"]
    row = [record for record in records if record.partition == records[0].partition]
    assert [record.offset for record in row] == list(range(len(row)))
    consumer.note_done(reversed(row[1:]))
    await consumer.commit()
    assert (await committed(positions, group, topic))[row[0].partition] == 0
    consumer.note_done(records)

    async def all_is_committed() -> bool:
        return await positions.lag(group, topic) == 0

    await eventually(all_is_committed)
    await consumer.stop()
    assert consumer.assigned == frozenset()
    await positions.close()


async def test_a_new_member_asks_once_for_the_commits_of_all_its_partitions(
    settings: KafkaSettings, producer: Producer, caplog: pytest.LogCaptureFixture
) -> None:
    await ensure_topics(settings.model_copy(update={"partitions": 12}), ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    await send(producer, topic, *(b"%d" % number for number in range(60)))
    first = await joined(settings, topic)
    first.note_done(await take(first, 60))
    await first.commit()
    await first.stop()
    await send(producer, topic, b"next")
    with caplog.at_level(logging.DEBUG, "aiokafka.conn"):
        second = await joined(settings, topic)
        (record,) = await take(second, 1)
    assert record.value == b"next"
    asked = [each for each in caplog.messages if each.startswith("Request to") and "OffsetFetchRequest" in each]
    assert len(asked) <= 4  # ours, and what the client asks for before it has an answer
    await second.stop()


async def test_noted_records_are_committed_before_the_consumer_leaves_and_the_rest_is_redelivered(
    settings: KafkaSettings, producer: Producer
) -> None:
    await ensure_topics(settings.model_copy(update={"partitions": 1}), ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    await send(producer, topic, *(b"%d" % number for number in range(10)))
    first = await joined(settings, topic)
    records = await take(first, 10)
    first.note_done(records[:4])
    await first.stop()
    second = await joined(settings, topic)
    assert [record.offset for record in await take(second, 6)] == [4, 5, 6, 7, 8, 9]
    await second.stop()


async def test_a_record_that_cannot_be_parsed_is_returned_with_its_bytes_and_blocks_nothing(
    settings: KafkaSettings, producer: Producer
) -> None:
    await ensure_topics(settings, ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    (before,) = await send(producer, topic, b"k")
    await send_batch(settings, topic, before.partition, with_broken_header())
    await send(producer, topic, b"k", b"other", b"third")
    consumer = await joined(settings, topic)
    records = await take(consumer, 5)
    assert sorted((record.key, bool(record.unreadable)) for record in records) == [
        (b"k", False),
        (b"k", False),
        (b"k", True),
        (b"other", False),
        (b"third", False),
    ]
    (broken,) = (record for record in records if record.unreadable)
    assert (broken.partition, broken.offset) == (before.partition, before.offset + 1)
    assert (broken.value, broken.headers) == (b"v", (("\\xff" * 8, b"1"),))
    await until_nothing_is_left(settings, consumer, topic, records)


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
async def test_a_batch_that_unpacks_to_too_much_is_returned_packed_and_blocks_nothing(
    settings: KafkaSettings, producer: Producer, codec: int
) -> None:
    """Beside one in the same codec that does not, in the same partition."""
    bounded = settings.model_copy(update={"max_record_bytes": 100_000, "dead_letter_max_bytes": 100_000})
    await ensure_topics(settings, ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    (before,) = await send(producer, topic, b"k")
    bomb = batch(codec, *[bytes(1000)] * 300)
    await send_batch(settings, topic, before.partition, batch(codec, *[bytes(1000)] * 150))
    await send_batch(settings, topic, before.partition, bomb)
    await send_batch(settings, topic, before.partition, batch(codec, *[bytes(1000)] * 150))
    await send(producer, topic, b"k")
    consumer = await joined(bounded, topic)
    records = await take(consumer, 303)
    (found,) = (record for record in records if record.unreadable)
    assert "200,000 bytes" in found.unreadable
    assert found.value is not None
    assert found.value[61:] == bomb[61:]  # as it came, but for what the broker notes in its header
    assert found.offset == before.offset + 150 + 300
    assert [record.offset for record in records if record.partition == before.partition] == [
        *range(before.offset, before.offset + 151),
        found.offset,
        *range(found.offset + 1, found.offset + 152),
    ]
    await until_nothing_is_left(bounded, consumer, topic, records)


async def until_nothing_is_left(
    settings: KafkaSettings, consumer: Consumer, topic: str, records: Sequence[Record]
) -> None:
    consumer.note_done(records)
    await consumer.commit()
    positions = Positions(settings)
    assert await positions.lag(f"{settings.topic_prefix}group", topic) == 0
    await positions.close()
    await consumer.stop()


async def test_a_second_member_takes_over_without_loss_and_without_an_error_in_the_log(
    settings: KafkaSettings, producer: Producer, caplog: pytest.LogCaptureFixture
) -> None:
    await ensure_topics(settings, ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    before = rebalances()
    first = await joined(settings, topic)
    await send(producer, topic, *(b"a%d" % number for number in range(20)))
    records = await take(first, 20)
    first.note_done(records)
    caplog.clear()  # a busy broker knows a new topic some time before it serves all of it
    second = Consumer(settings, f"{settings.topic_prefix}group", topic)
    await second.start()

    async def shared() -> bool:
        await first.fetch(10, 0.05)
        return bool(second.assigned) and first.assigned.isdisjoint(second.assigned) and rebalances() > before + 2

    await eventually(shared)
    assert first.assigned | second.assigned == {(topic, 0), (topic, 1), (topic, 2)}
    await send(producer, topic, *(b"b%d" % number for number in range(20)))
    taken: list[bytes | None] = []

    async def all_arrived() -> bool:
        for each in (first, second):
            batch = await each.fetch(10, 0.1)
            taken.extend(record.key for record in batch)
            each.note_done(batch)
        return len(taken) >= 20

    await eventually(all_arrived)
    assert sorted(key or b"" for key in taken) == sorted(b"b%d" % number for number in range(20))
    await asyncio.gather(first.stop(), second.stop())
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_topic_recreated_under_a_member_is_read_from_its_start(
    settings: KafkaSettings, producer: Producer
) -> None:
    await ensure_topics(settings, ["email"])
    topic, group = f"{settings.topic_prefix}tasks.email", f"{settings.topic_prefix}group"
    consumer = await joined(settings, topic)
    await send(producer, topic, *(b"a%d" % number for number in range(9)))
    old = await take(consumer, 9)
    consumer.note_done(old[:-1])
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    await admin.delete_topics([topic])
    await admin.close()
    positions = Positions(settings)

    async def gone() -> bool:
        return await positions.log_id(topic) is None

    await eventually(gone)
    await ensure_topics(settings, ["email"])

    async def sent() -> bool:
        (outcome,) = await producer.publish([OutRecord(topic, b"b0", b"b0")])
        return isinstance(outcome, Published)

    await eventually(sent)
    await send(producer, topic, *(b"b%d" % number for number in range(1, 9)))
    new: dict[bytes | None, int] = {}

    async def all_of_the_new_log_arrived() -> bool:
        batch = await consumer.fetch(10, 0.5)
        # Until the consumer has noticed, it may deliver what lies behind its old position; that comes again.
        new.update({record.key: record.epoch for record in batch})
        consumer.note_done([*old, *batch])
        return len(new) == 9 and await positions.lag(group, topic) == 0

    await eventually(all_of_the_new_log_arrived)
    await consumer.stop()
    await positions.close()


async def test_a_consumer_outlives_a_broker_that_forgets_its_log_and_its_groups(
    mortal: Broker, mortal_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "taskflux.stream")
    consumer = Consumer(mortal_settings, "group", "tasks.email")
    await consumer.start()
    assert await consumer.fetch(10, 0.2) == []
    assert "the group cannot be joined" in caplog.messages
    await mortal.start()
    await ensure_topics(mortal_settings, ["email"])
    producer = Producer(mortal_settings)
    await producer.start()

    async def healthy() -> bool:
        return producer.healthy

    await eventually(healthy)
    await send(producer, "tasks.email", *(b"a%d" % number for number in range(10)))
    old = await take(consumer, 10)
    consumer.note_done(old)
    await consumer.commit()
    mortal.kill()
    await mortal.wait()
    assert await consumer.fetch(10, 0.2) == []
    await mortal.start()
    await ensure_topics(mortal_settings, ["email"])

    async def sent() -> bool:
        (outcome,) = await producer.publish([OutRecord("tasks.email", b"b0", b"b0")])
        return isinstance(outcome, Published)

    await eventually(sent)
    await send(producer, "tasks.email", b"b1", b"b2")
    new = await take(consumer, 3, timeout=20)
    assert {record.key for record in new} == {b"b0", b"b1", b"b2"}
    consumer.note_done([*old, *new])
    positions = Positions(mortal_settings)

    async def all_is_committed() -> bool:
        at = await positions.read("group", "tasks.email")
        return at is not None and all(each.committed == each.end for each in at.partitions.values())

    await eventually(all_is_committed)
    await positions.close()
    await consumer.stop()
    await producer.stop()


async def test_a_member_that_asks_for_no_records_for_a_while_stays_in_its_group(
    settings: KafkaSettings, producer: Producer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a worker does whose threads are all stuck."""
    monkeypatch.setattr("taskflux.stream.consumer._STALLED_AFTER", 1.0)
    monkeypatch.setattr("taskflux.stream.consumer._ASKED_WITHIN", 0.25)
    monkeypatch.setattr("taskflux.stream.consumer._WATCH_INTERVAL", 0.1)
    await ensure_topics(settings, ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    consumer = await joined(settings, topic)
    assert await consumer.fetch(10, 0.1) == []
    await send(producer, topic, *[bytes([number]) for number in range(60)])
    before = rebalances()
    await asyncio.sleep(3)
    assert rebalances() == before
    assert "has stopped fetching" not in caplog.text
    assert len(await take(consumer, 60)) == 60
    await consumer.stop()
