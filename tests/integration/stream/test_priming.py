from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from taskflux.local.ports import free_port
from taskflux.local.servers import Broker
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import OutRecord
from taskflux.stream.positions import Positions
from taskflux.stream.producer import Producer, Published
from taskflux.stream.provision import Primed, PrimingReport, ensure_topics, prime
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import task_group, task_topic
from tests.integration.stream.patience import committed, eventually, log_starts, take


@pytest.fixture
def topic(settings: KafkaSettings) -> str:
    return task_topic(settings.topic_prefix, "email")


@pytest.fixture
def group(settings: KafkaSettings) -> str:
    return task_group(settings.topic_prefix, "email")


@pytest.fixture
async def positions(settings: KafkaSettings) -> AsyncIterator[Positions]:
    positions = Positions(settings)
    yield positions
    await positions.close()


async def send(producer: Producer, topic: str, count: int) -> list[Published]:
    outcomes = await producer.publish([OutRecord(topic, b"%d" % number, b"v") for number in range(count)])
    published = [outcome for outcome in outcomes if isinstance(outcome, Published)]
    assert len(published) == count, outcomes
    return published


async def commit(settings: KafkaSettings, group: str, topic: str, offsets: dict[int, int]) -> None:
    """As a group that is empty again afterwards."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    consumer.assign([TopicPartition(topic, number) for number in offsets])
    await consumer.commit({TopicPartition(topic, number): offset for number, offset in offsets.items()})
    await consumer.stop()


async def test_a_new_group_begins_at_the_logs_start_and_its_lag_is_the_whole_log(
    settings: KafkaSettings, producer: Producer, positions: Positions, group: str, topic: str
) -> None:
    await ensure_topics(settings, ["email"])
    await send(producer, topic, 20)
    assert await committed(positions, group, topic) == {0: None, 1: None, 2: None}
    report = await prime(settings, [(group, topic)])
    assert report == PrimingReport(primed={group: Primed(topic, partitions=3, waiting=20)})
    assert await committed(positions, group, topic) == {0: 0, 1: 0, 2: 0}
    assert await prime(settings, [(group, topic)]) == PrimingReport()
    # No record is skipped: the first member reads all of them.
    consumer = Consumer(settings, group, topic)
    await consumer.start()
    assert len(await take(consumer, 20)) == 20
    await consumer.stop()


async def test_a_partition_with_a_commit_is_left_as_it_is(
    settings: KafkaSettings, producer: Producer, positions: Positions, group: str, topic: str
) -> None:
    await ensure_topics(settings, ["email"])
    ends = dict.fromkeys(range(3), 0)
    for sent in await send(producer, topic, 30):
        ends[sent.partition] += 1
    await commit(settings, group, topic, {0: ends[0], 2: 1})
    report = await prime(settings, [(group, topic)])
    assert report.primed == {group: Primed(topic, partitions=1, waiting=ends[1])}
    assert await committed(positions, group, topic) == {0: ends[0], 1: 0, 2: 1}


async def test_a_group_with_members_is_left_to_them(
    settings: KafkaSettings, positions: Positions, group: str, topic: str
) -> None:
    await ensure_topics(settings, ["email"])
    member = AIOKafkaConsumer(
        topic,
        bootstrap_servers=settings.bootstrap_servers,
        group_id=group,
        enable_auto_commit=False,
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
    )
    await member.start()
    assert member.assignment()
    assert await prime(settings, [(group, topic)]) == PrimingReport(left_to_members=[group])
    assert await committed(positions, group, topic) == {0: None, 1: None, 2: None}
    await member.stop()


async def test_a_consumer_that_joins_meanwhile_is_never_set_back(
    settings: KafkaSettings, producer: Producer, positions: Positions, group: str, topic: str
) -> None:
    await ensure_topics(settings, ["email"])
    await send(producer, topic, 30)
    consumer = Consumer(settings, group, topic)
    all_is_done = asyncio.Event()

    async def keep_priming() -> int:
        rounds = 0
        while not all_is_done.is_set():
            assert (await prime(settings, [(group, topic)])).refused == {}
            rounds += 1
        return rounds

    priming = asyncio.create_task(keep_priming())
    await consumer.start()
    consumer.note_done(await take(consumer, 30))
    await consumer.commit()
    assert await positions.lag(group, topic) == 0
    all_is_done.set()
    assert await priming
    await consumer.stop()
    assert await prime(settings, [(group, topic)]) == PrimingReport()
    assert await positions.lag(group, topic) == 0


@pytest.mark.skipif(os.environ.get("TASKFLUX_TEST_BROKER") != "kafka", reason="the embedded broker deletes no records")
async def test_where_the_log_no_longer_begins_at_zero_the_commit_does_not_either(
    settings: KafkaSettings, producer: Producer, positions: Positions, group: str, topic: str
) -> None:
    settings = settings.model_copy(update={"partitions": 1})
    await ensure_topics(settings, ["email"])
    await send(producer, topic, 5)
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=3)})
    await admin.close()

    async def gone() -> bool:
        return await log_starts(positions, topic) == {0: 3}

    await eventually(gone)
    report = await prime(settings, [(group, topic)])
    assert report.primed == {group: Primed(topic, partitions=1, waiting=2)}
    assert await committed(positions, group, topic) == {0: 3}


async def test_several_groups_are_primed_at_once_by_several_processes(
    settings: KafkaSettings, positions: Positions
) -> None:
    await ensure_topics(settings, ["email", "sms"])
    prefix = settings.topic_prefix
    readers = [(task_group(prefix, name), task_topic(prefix, name)) for name in ("email", "sms")]
    reports = await asyncio.gather(*(prime(settings, readers) for _ in range(4)))
    assert all(not report.refused and not report.left_to_members for report in reports)
    for group, topic in readers:
        assert await committed(positions, group, topic) == {0: 0, 1: 0, 2: 0}


async def test_a_missing_topic_is_reported_and_not_created(
    settings: KafkaSettings, positions: Positions, group: str
) -> None:
    topic = f"{settings.topic_prefix}of-somebody-else"
    assert await prime(settings, [(group, topic)]) == PrimingReport(missing={group: topic})
    assert await positions.log_id(topic) is None


async def test_a_broker_that_has_just_started_is_given_the_time_to_coordinate_groups(
    mortal: Broker, mortal_settings: KafkaSettings
) -> None:
    await mortal.start()
    await ensure_topics(mortal_settings, ["email"])
    report = await prime(mortal_settings, [("taskflux.email", "tasks.email")])
    assert report.primed == {"taskflux.email": Primed("tasks.email", partitions=2, waiting=0)}


async def test_without_brokers_it_says_so() -> None:
    nobody = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(KafkaUnavailable, match="Kafka did not answer"):
        await prime(nobody, [("group", "topic")])
