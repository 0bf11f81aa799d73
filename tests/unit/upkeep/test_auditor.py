from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast
from uuid import UUID

import pytest

from taskflux.store.upkeep import Published
from taskflux.stream.positions import PartitionPositions, Positions, TopicPositions
from taskflux.upkeep import recovery
from taskflux.upkeep.recovery import Auditor, will_deliver
from taskflux.worker.settings import RelaySettings, Settings
from tests.integration.store.scene import LOG as SCENE_LOG
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
    assert will_deliver(at(), {"email": positions}) is delivered


def test_a_recreated_topic_delivers_no_former_record() -> None:
    assert not will_deliver(at(log=FORMER_LOG), {"email": topic()})


def test_a_deleted_topic_delivers_nothing() -> None:
    assert not will_deliver(at(), {"email": None})


def test_a_missing_partition_delivers_nothing() -> None:
    assert not will_deliver(at(partition=7), {"email": topic()})


@pytest.mark.parametrize("task", [at(log=None), at(partition=None), at(offset=None)])
def test_a_record_whose_place_is_unknown_will_not_be_delivered(task: Published) -> None:
    assert not will_deliver(task, {"email": topic()})


class Gone:
    """In place of Kafka's positions: no topic exists."""

    async def read_all(self, topics: Mapping[str, str]) -> dict[str, TopicPositions]:
        return {}


class NoTopics:
    """In place of Kafka's positions: no topic exists. Both callers are answered once both have asked."""

    def __init__(self) -> None:
        self.both = asyncio.Barrier(2)

    async def read_all(self, topics: Mapping[str, str]) -> dict[str, TopicPositions]:
        await self.both.wait()
        return {}


class Logs:
    """In place of Kafka: the topic `tasks.email`, with `ends` of its logs, one for each time that it is asked."""

    def __init__(self, *ends: int, start: int = 0) -> None:
        self.ends = list(ends)
        self.start = start
        self.asked: list[Mapping[str, str]] = []

    async def read_all(self, topics: Mapping[str, str]) -> dict[str, TopicPositions]:
        self.asked.append(topics)
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        return {"tasks.email": TopicPositions(SCENE_LOG, {0: PartitionPositions(self.start, end, None)})}


async def audited(scene: Scene, logs: Logs, share: float = 1.0) -> int:
    """How many tasks an audit has published again."""
    return (await Auditor(Settings(), scene.database, cast("Positions", logs)).audit(share)).total()


async def test_only_suspects_are_compared_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "PAGE", 10)
    tasks = await scene.accepted(100)
    await scene.confirm(tasks)
    logs = Logs(100)
    assert await audited(scene, logs) == 0
    assert len(logs.asked) == 1  # for the first page: the others are known to be delivered


async def test_what_was_published_after_the_positions_were_read_is_not_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAGE", 10)
    tasks = await scene.accepted(40)
    await scene.confirm(tasks)
    logs = Logs(10, 25, 40)  # each page finds records beyond the ends that were read before
    assert await audited(scene, logs) == 0
    assert len(logs.asked) > 1
    assert {await scene.state(task) for task in tasks} == {("queued", 1)}


async def test_records_that_a_log_has_lost_are_found_page_by_page(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAGE", 10)
    tasks = await scene.accepted(60)
    await scene.confirm(tasks)
    worker = await scene.worker()
    await worker.claim("email", dict.fromkeys(tasks[:5], 1))
    assert await audited(scene, Logs(60, start=35)) == 30
    states = [await scene.state(task) for task in tasks]
    assert states == [("running", 2)] * 5 + [("scheduled", 2)] * 30 + [("queued", 1)] * 25


async def test_a_pass_keeps_postgresql_busy_for_its_share_of_the_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAGE", 10)
    await scene.confirm(await scene.accepted(60))
    loop, rests = asyncio.get_running_loop(), []

    def rest(busy: float, share: float) -> float:
        rests.append((busy, share))
        return 0.0

    assert recovery.rest(2.0, 0.05) == pytest.approx(38.0)
    monkeypatch.setattr(recovery, "rest", rest)
    began = loop.time()
    await audited(scene, Logs(60), share=0.05)
    assert {share for _, share in rests} == {0.05}
    assert 0 < sum(busy for busy, _ in rests) <= loop.time() - began
    assert len(rests) == 6


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
