"""Records that are delivered again, and logs and offsets that are lost (guarantee 2)."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from uuid_utils.compat import uuid7

from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.envelope import Envelope, OutRecord, encode
from taskflux.stream.provision import ensure_topics
from taskflux.stream.topics import task_group
from tests.integration.system.scripted import World, late
from tests.integration.system.stack import Stack, eventually


async def test_records_that_come_twice_late_or_for_no_task_change_nothing_and_are_counted(
    stack: Stack, world: World
) -> None:
    task = await stack.submit("scripted")
    document = await stack.until(task, "succeeded")
    (row,) = await stack.rows([task])
    before = await stack.metric("taskflux_duplicates_suppressed_total", type="scripted")
    await stack.produce(
        *[_claim_check(stack, task, 1)] * 2,
        _claim_check(stack, task, row["version"]),
        _claim_check(stack, task, row["version"] + 5),
        _claim_check(stack, uuid7(), 1),
    )

    async def counted() -> bool:
        return await stack.metric("taskflux_duplicates_suppressed_total", type="scripted") == before + 5

    await eventually(counted, "five are suppressed")
    assert await stack.lag("scripted") == 0
    assert world.effects(task) == 1
    assert (await stack.get(task))["timeline"] == document["timeline"]


async def test_a_record_whose_task_waits_for_its_retry_does_not_run_it_early(stack: Stack, world: World) -> None:
    task = await stack.submit("scripted", delaySeconds=1.0)
    await stack.produce(_claim_check(stack, task, 0), _claim_check(stack, task, 2))
    document = await stack.until(task, "succeeded")
    claimed = next(entry for entry in document["timeline"] if entry["event"] == "claimed")
    assert claimed["at"] >= document["dueAt"]
    assert world.effects(task) == 1


async def test_a_topic_recreated_and_offsets_reset_under_a_backlog_lose_nothing_and_repeat_nothing(
    stack: Stack, world: World
) -> None:
    # No worker consumes these yet.
    backlog = await stack.submit_many("late", 50)
    await stack.until_all(backlog, "queued")
    await _recreate(stack, "late")
    await stack.start(late)
    for row in await stack.until_all(backlog, "succeeded"):
        assert row["attempts"] == world.effects(row["id"]) == 1
        assert any("|not-owed|" in entry for entry in row["timeline"])

    await stack.stop("late")
    expiring = await stack.submit("late", expiresAt=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    await stack.until(expiring, "queued")
    await stack.sql.execute("UPDATE tasks SET expires_at = now() WHERE id = $1", expiring)  # its hour has passed
    records = await stack.published("late")
    assert records >= 50

    async def begun_again() -> bool:
        with suppress(KafkaError):  # the worker has left, and on a busy machine Kafka does not know it yet
            await _commit_zero(stack, "late")
        return bool(await stack.lag("late") == records)

    await eventually(begun_again, "the group's offsets are at the start")
    before = await stack.metric("taskflux_duplicates_suppressed_total", type="late")
    await stack.start(late)
    new = await stack.submit_many("late", 10)
    await stack.until_all(new, "succeeded")

    async def all_skipped() -> bool:
        skipped = await stack.metric("taskflux_duplicates_suppressed_total", type="late") - before
        return skipped >= records - 1  # all but the one that waited; some twice, if the worker had to join once more

    await eventually(all_skipped, "all former records are skipped")
    assert [world.effects(task) for task in [*backlog, *new]] == [1] * 60
    # Its time had passed when it was claimed.
    document = await stack.until(expiring, "dead")
    assert (document["error"]["class"], world.effects(expiring)) == ("Expired", 0)
    await stack.stop("late")


def _claim_check(stack: Stack, task: UUID, version: int, task_type: str = "scripted") -> OutRecord:
    return OutRecord(stack.topic(task_type), *encode(Envelope(task, task_type, version)))


async def _recreate(stack: Stack, task_type: str) -> None:
    """Delete a type's topic and make it anew."""
    topic, former = stack.topic(task_type), await stack.positions.log_id(stack.topic(task_type))
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.settings.kafka.bootstrap_servers)
    await admin.start()

    async def deleted() -> bool:
        ((_, code),) = (await admin.delete_topics([topic])).topic_error_codes
        return code in (0, UnknownTopicOrPartitionError.errno)

    async def anew() -> bool:
        with suppress(KafkaUnavailable):  # just now
            await ensure_topics(stack.settings.kafka, [task_type])
            return await stack.positions.log_id(topic) not in (None, former)
        return False

    await eventually(deleted, f"{topic} is deleted")
    await admin.close()
    await eventually(anew, f"{topic} is made anew")


async def _commit_zero(stack: Stack, task_type: str) -> None:
    """Set the group's offsets to the log's start, as if they had been lost."""
    settings = stack.settings.kafka
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        group_id=task_group(settings.topic_prefix, task_type),
        enable_auto_commit=False,
    )
    await consumer.start()
    partitions = [TopicPartition(stack.topic(task_type), number) for number in range(settings.partitions)]
    consumer.assign(partitions)
    await consumer.commit(dict.fromkeys(partitions, 0))
    await consumer.stop()
