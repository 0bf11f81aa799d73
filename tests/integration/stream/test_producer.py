import asyncio
import time

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from taskflux.local.servers import Broker
from taskflux.stream.envelope import OutRecord
from taskflux.stream.positions import Positions
from taskflux.stream.producer import NotPublished, Producer, Published
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from tests.integration.stream.patience import eventually


async def test_every_record_is_where_its_outcome_says(settings: KafkaSettings, producer: Producer) -> None:
    await ensure_topics(settings, ["email", "sms"])
    email, sms = f"{settings.topic_prefix}tasks.email", f"{settings.topic_prefix}tasks.sms"
    records = [OutRecord(email, b"key-%d" % number, b"%d" % number, (("h", b"1"),)) for number in range(500)]
    records += [OutRecord(sms, None, None, (("a", None), ("b", b"")))]
    outcomes = await producer.publish(records)
    positions = Positions(settings)
    log_ids = {topic: await positions.log_id(topic) for topic in (email, sms)}
    await positions.close()
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, fetch_max_wait_ms=20)
    await consumer.start()
    consumer.assign([TopicPartition(topic, number) for topic in (email, sms) for number in range(3)])
    await consumer.seek_to_beginning()
    found: dict[tuple[str, int, int], ConsumerRecord] = {}
    async with asyncio.timeout(10):
        while len(found) < len(records):
            for partition, batch in (await consumer.getmany(timeout_ms=1000)).items():
                found |= {(*partition, record.offset): record for record in batch}
    await consumer.stop()
    for record, outcome in zip(records, outcomes, strict=True):
        assert isinstance(outcome, Published)
        assert outcome.log_id == log_ids[record.topic]
        there = found[record.topic, outcome.partition, outcome.offset]
        assert (there.key, there.value, there.headers) == (record.key, record.value, record.headers)


async def test_concurrent_callers_get_their_own_outcomes(settings: KafkaSettings, producer: Producer) -> None:
    await ensure_topics(settings, ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    calls = [[OutRecord(topic, b"%d-%d" % (call, index), b"v") for index in range(call % 7)] for call in range(20)]
    answers = await asyncio.gather(*(producer.publish(records) for records in calls))
    assert [len(answer) for answer in answers] == [len(records) for records in calls]
    places = [
        (outcome.partition, outcome.offset)
        for answer in answers
        for outcome in answer
        if isinstance(outcome, Published)
    ]
    assert len(places) == len(set(places)) == sum(map(len, calls))


async def test_an_unknown_topic_and_an_oversize_record_are_refused_and_delay_no_other(
    settings: KafkaSettings, producer: Producer
) -> None:
    await ensure_topics(settings, ["email"])
    topic = f"{settings.topic_prefix}tasks.email"
    began = time.monotonic()
    unknown, large, good = await producer.publish(
        [
            OutRecord(f"{settings.topic_prefix}tasks.nowhere", b"k", b"v"),
            OutRecord(topic, b"k", b"x" * (settings.dead_letter_max_bytes + 1)),
            OutRecord(topic, b"k", b"v"),
        ]
    )
    assert time.monotonic() - began < 2
    assert isinstance(unknown, NotPublished)
    assert isinstance(large, NotPublished)
    assert (unknown.error, large.error) == ("UnknownTopic", "TooLarge")
    assert "tasks.nowhere does not exist" in unknown.reason
    assert isinstance(good, Published)
    assert producer.healthy


async def test_the_dead_letter_topic_takes_a_record_of_several_megabytes(
    settings: KafkaSettings, producer: Producer
) -> None:
    await ensure_topics(settings, [])
    (outcome,) = await producer.publish([OutRecord(f"{settings.topic_prefix}tasks.dlq", b"k", b"x" * 8_000_000)])
    assert isinstance(outcome, Published)


async def test_a_record_sent_after_its_topic_was_recreated_is_never_noted_for_a_later_log(
    mortal: Broker, mortal_settings: KafkaSettings
) -> None:
    await mortal.start()
    await ensure_topics(mortal_settings, ["email"])
    producer, positions = Producer(mortal_settings), Positions(mortal_settings)
    await producer.start()
    (before,) = await producer.publish([OutRecord("tasks.email", b"k", b"v")])
    assert isinstance(before, Published)
    assert before.log_id == await positions.log_id("tasks.email")
    mortal.kill()
    await mortal.wait()
    await mortal.start()
    await ensure_topics(mortal_settings, ["email"])
    after = await positions.log_id("tasks.email")
    assert after != before.log_id

    async def noted_for_the_new_log() -> bool:
        (outcome,) = await producer.publish([OutRecord("tasks.email", b"k", b"v")])
        if not isinstance(outcome, Published):
            return False
        assert outcome.log_id in (before.log_id, after)
        return outcome.log_id == after

    await eventually(noted_for_the_new_log)
    await producer.stop()
    await positions.close()


async def test_an_outage_of_kafka_is_an_outcome_and_ends_by_itself(
    mortal: Broker, mortal_settings: KafkaSettings
) -> None:
    record = OutRecord("tasks.email", b"k", b"v")
    producer = Producer(mortal_settings)
    await producer.start()

    async def healthy() -> bool:
        return producer.healthy

    for life in range(2):
        began = time.monotonic()
        (outcome,) = await producer.publish([record])
        assert isinstance(outcome, NotPublished), life
        assert time.monotonic() - began < mortal_settings.produce_timeout + 0.5
        assert not producer.healthy
        (outcome,) = await producer.publish([record])
        assert isinstance(outcome, NotPublished)
        await mortal.start()
        await ensure_topics(mortal_settings, ["email"])
        await eventually(healthy)
        (outcome,) = await producer.publish([record])
        assert isinstance(outcome, Published)
        mortal.kill()
        await mortal.wait()
    await producer.stop()
