from __future__ import annotations

import asyncio
from typing import cast
from uuid import UUID

import pytest

from taskflux.store.upkeep import Published
from taskflux.stream.positions import PartitionPositions, Positions, TopicPositions
from taskflux.upkeep.recovery import Auditor, will_deliver
from taskflux.worker.settings import RelaySettings, Settings
from tests.integration.store.scene import Scene

LOG, FORMER_LOG = UUID(int=1), UUID(int=2)


def at(log: UUID | None = LOG, partition: int | None = 0, offset: int | None = 50) -> Published:
    return Published(UUID(int=9), "email", 3, log, partition, offset)


def topic(start: int = 0, end: int = 100, committed: int | None = 40) -> TopicPositions:
    return TopicPositions(LOG, {0: PartitionPositions(start, end, committed)})


@pytest.mark.parametrize(
    ("positions", "delivered"),
    [
        (topic(committed=40), True),
        (topic(committed=50), True),
        (topic(committed=51), False),
        (topic(committed=None), True),
        (topic(start=51, end=100, committed=None), False),
        (topic(start=51, end=100, committed=0), False),
        (topic(end=50, committed=0), False),
        (topic(end=51, committed=0), True),
        (topic(start=0, end=0, committed=None), False),
    ],
    ids=[
        "not taken yet",
        "the next to be taken",
        "taken",
        "nothing was ever committed",
        "expired before it was taken",
        "expired under the commit",
        "the log was cut before it",
        "the last of the log",
        "an empty log",
    ],
)
def test_a_record_between_the_groups_commit_and_the_logs_end_will_be_delivered(
    positions: TopicPositions, delivered: bool
) -> None:
    assert will_deliver(at(), positions) is delivered


def test_a_recreated_topic_delivers_no_former_record() -> None:
    assert not will_deliver(at(log=FORMER_LOG), topic())


def test_a_deleted_topic_delivers_nothing() -> None:
    assert not will_deliver(at(), None)


def test_a_missing_partition_delivers_nothing() -> None:
    assert not will_deliver(at(partition=7), topic())


@pytest.mark.parametrize("task", [at(log=None), at(partition=None), at(offset=None)])
def test_a_record_whose_place_is_unknown_will_not_be_delivered(task: Published) -> None:
    assert not will_deliver(task, topic())


class Gone:
    """In place of Kafka's positions: no topic exists."""

    async def read(self, group: str, topic: str) -> TopicPositions | None:
        return None


class NoTopics:
    """In place of Kafka's positions: no topic exists. Both callers are answered once both have asked."""

    def __init__(self) -> None:
        self.both = asyncio.Barrier(2)

    async def read(self, group: str, topic: str) -> TopicPositions | None:
        await self.both.wait()
        return None


async def test_two_auditors_at_once_have_each_lost_record_published_again_once(scene: Scene) -> None:
    tasks = await scene.accepted(100)
    await scene.confirm(tasks)
    positions = cast("Positions", NoTopics())
    auditors = [Auditor(Settings(), scene.database, positions) for _ in range(2)]
    found = await asyncio.gather(*(auditor.audit() for auditor in auditors))
    assert sum(each.total() for each in found) == 100
    assert {await scene.state(task) for task in tasks} == {("scheduled", 2)}
    assert len(await scene.sql("SELECT FROM due")) == 100


async def test_between_two_audits_a_task_without_its_outbox_row_gets_one(scene: Scene) -> None:
    """As the release before has left it. The first audit does not wait for the look at all tasks."""
    known, unknown = await scene.accepted(2)
    await scene.confirm([known, unknown])
    await scene.sql(
        "UPDATE tasks SET state = 'queued', published_log = $2, published_partition = 0, published_offset = 1,"
        " timeline = timeline || replace(replace(timeline[1], 'accepted', 'published'), 'scheduled', 'queued')"
        " WHERE id = $1",
        unknown,
        LOG,
    )
    await scene.sql("DELETE FROM due WHERE task_id = $1", unknown)
    await scene.sql("INSERT INTO backfill_published VALUES ($1)", UUID(int=0))
    settings = Settings(relay=RelaySettings(audit_seconds=0.05))
    auditing = asyncio.ensure_future(Auditor(settings, scene.database, cast("Positions", Gone())).keep_auditing())
    versions = []
    async with asyncio.timeout(30):
        while await scene.state(unknown) != ("scheduled", 2):
            versions.append((await scene.state(known), await scene.sql("SELECT FROM backfill_published") != []))
            await asyncio.sleep(0.01)
    auditing.cancel()
    assert await scene.state(known) == ("scheduled", 2)
    assert (("queued", 1), False) not in versions
