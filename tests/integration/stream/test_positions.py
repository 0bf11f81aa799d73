import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from taskflux.local.servers import Broker
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.envelope import OutRecord
from taskflux.stream.positions import PartitionPositions, Positions
from taskflux.stream.producer import Producer, Published
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from tests.integration.stream.batches import TIME, batch, send_batch
from tests.integration.stream.patience import committed, eventually, log_ends, log_starts
from tests.memory import traced_peak


async def test_positions_show_what_was_sent_and_what_was_committed(settings: KafkaSettings, producer: Producer) -> None:
    await ensure_topics(settings, ["email", "sms"])
    topic, group = f"{settings.topic_prefix}tasks.email", f"{settings.topic_prefix}group"
    outcomes = await producer.publish([OutRecord(topic, b"%d" % number, b"v") for number in range(30)])
    ends = dict.fromkeys(range(3), 0)
    for outcome in outcomes:
        assert isinstance(outcome, Published)
        ends[outcome.partition] += 1
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    consumer.assign([TopicPartition(topic, 1)])
    await consumer.commit({TopicPartition(topic, 1): 2})
    await consumer.stop()
    positions = Positions(settings)
    found = await positions.read(group, topic)
    assert found is not None
    assert found.partitions == {
        number: PartitionPositions(0, ends[number], 2 if number == 1 else None) for number in range(3)
    }
    assert await log_ends(positions, topic) == ends
    assert await log_starts(positions, topic) == {0: 0, 1: 0, 2: 0}
    assert await committed(positions, group, topic) == {0: None, 1: 2, 2: None}
    assert await positions.lag(group, topic) == 28
    several = await positions.read_all({topic: group, f"{settings.topic_prefix}tasks.sms": "other", "none": "other"})
    assert {name: at.lag for name, at in several.items()} == {topic: 28, f"{settings.topic_prefix}tasks.sms": 0}
    await positions.close()


async def test_the_time_of_a_record_can_be_read(settings: KafkaSettings) -> None:
    await ensure_topics(settings, ["email"])
    topic, now = f"{settings.topic_prefix}tasks.email", int(time.time() * 1000)
    ages = {0: [600_000, 30_000, 2_000], 1: [7_000, 0]}
    # Compressed, as another producer's may be: what is asked for does not depend on it.
    writer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, compression_type="gzip")
    await writer.start()
    for number, all_of_it in ages.items():
        for age in all_of_it:
            await writer.send_and_wait(topic, b"v" * 5000, partition=number, timestamp_ms=now - age)
    await writer.stop()
    positions = Positions(settings)
    for heads in ({(topic, 0): 0, (topic, 1): 1, (topic, 2): 0}, {(topic, 0): 2, (topic, 1): 0}):
        found = await positions.written_at(heads)
        assert found == {
            (topic, number): (now - ages[number][offset]) / 1000
            for (_, number), offset in heads.items()
            if number in ages
        }
    assert await positions.written_at({(topic, 0): 3, (f"{topic}.none", 0): 0, (topic, 99): 0}) == {}
    await positions.close()


async def test_the_time_of_a_batch_too_large_to_unpack_can_be_read(settings: KafkaSettings) -> None:
    await ensure_topics(settings, ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    await send_batch(settings, topic, 0, batch(1, bytes(50_000_000)))
    await send_batch(settings, topic, 1, batch(0, b"v"))
    positions = Positions(settings)
    with traced_peak() as peak:
        found = await positions.written_at({(topic, 0): 0, (topic, 1): 0})
    assert found == {(topic, 0): TIME / 1000, (topic, 1): TIME / 1000}
    assert peak.bytes < 20_000_000
    await positions.close()


async def test_the_times_of_large_compressed_records_of_many_partitions_can_be_read(
    settings: KafkaSettings,
) -> None:
    settings = settings.model_copy(update={"partitions": 8})
    await ensure_topics(settings, ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    for number in range(8):
        await send_batch(settings, topic, number, batch(1, bytes(200_000), bytes(200_000)))
    positions = Positions(settings)
    for offset in (0, 1):
        found = await positions.written_at({(topic, number): offset for number in range(8)})
        assert found == {(topic, number): TIME / 1000 for number in range(8)}
    await positions.close()


async def test_deep_in_a_log_the_oldest_record_is_found_too(settings: KafkaSettings) -> None:
    await ensure_topics(settings, ["email"])
    topic, written = f"{settings.topic_prefix}tasks.email", 1_700_000_000_000
    writer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    await writer.start()
    for number in range(2500):  # a batch each: the embedded broker looks through all of them
        await writer.send_and_wait(topic, b"v", partition=0, timestamp_ms=written + number)
    await writer.stop()
    positions = Positions(settings)
    assert await positions.written_at({(topic, 0): 2498}) == {(topic, 0): (written + 2498) / 1000}
    await positions.close()


async def test_a_missing_topic_is_not_an_error(settings: KafkaSettings) -> None:
    positions = Positions(settings)
    topic = f"{settings.topic_prefix}tasks.none"
    assert await positions.read("group", topic) is None
    assert await positions.lag("group", topic) is None
    assert await positions.log_id(topic) is None
    assert await log_ends(positions, topic) == {}
    assert await committed(positions, "group", topic) == {}
    await positions.close()


async def test_a_recreated_topic_is_seen_at_once_and_delivers_nothing_of_its_former_log(
    settings: KafkaSettings, producer: Producer
) -> None:
    await ensure_topics(settings, ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    (sent,) = await producer.publish([OutRecord(topic, b"k", b"v")])
    assert isinstance(sent, Published)
    positions = Positions(settings)
    before = await positions.read("group", topic)
    assert before is not None
    assert before.will_deliver(sent.log_id, sent.partition, sent.offset)
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    await admin.delete_topics([topic])
    await admin.close()

    async def gone() -> bool:
        return await positions.log_id(topic) is None

    await eventually(gone)
    await ensure_topics(settings, ["email"])
    after = await positions.read("group", topic)
    assert after is not None
    assert after.log_id != before.log_id
    assert after.lag == 0
    assert not after.will_deliver(sent.log_id, sent.partition, sent.offset)
    await positions.close()


async def test_a_reader_outlives_its_broker(mortal: Broker, mortal_settings: KafkaSettings) -> None:
    positions = Positions(mortal_settings)
    for _ in range(2):
        with pytest.raises(KafkaUnavailable):
            await positions.lag("group", "tasks.email")
        await mortal.start()
        assert await positions.lag("group", "tasks.email") is None
        await ensure_topics(mortal_settings, ["email"])
        assert await positions.lag("group", "tasks.email") == 0
        mortal.kill()
        await mortal.wait()
    await positions.close()
