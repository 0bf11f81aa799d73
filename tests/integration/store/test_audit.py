from __future__ import annotations

import pytest

from taskflux.store.tasks import FIRST_ID
from taskflux.store.upkeep import Published
from tests.integration.store.scene import LOG, TYPE, Scene, succeeded


async def queued(scene: Scene) -> list[Published]:
    found: list[Published] = []
    after = FIRST_ID
    while True:
        last, page = await scene.upkeep.audit_page(after, 7)
        found += page
        if last is None:
            return found
        after = last


async def test_page_by_page_every_queued_task_is_seen_once_with_its_place(scene: Scene) -> None:
    tasks = await scene.accepted(30)
    await scene.confirm(tasks[:20])
    worker = await scene.worker()
    await worker.claim(TYPE, dict.fromkeys(tasks[:5], 1))
    assert await queued(scene) == [
        Published(task, TYPE, 1, LOG, 0, offset) for offset, task in enumerate(tasks[:20]) if offset >= 5
    ]


async def test_a_page_without_a_queued_task_is_not_the_end(scene: Scene) -> None:
    tasks = await scene.accepted(20)
    await scene.confirm(tasks[15:])
    assert [task.id for task in await queued(scene)] == tasks[15:]


async def test_without_tasks_there_is_no_page(scene: Scene) -> None:
    assert await scene.upkeep.audit_page(FIRST_ID, 10) == (None, [])


async def test_a_task_whose_record_was_lost_is_due_again_under_a_new_version(scene: Scene) -> None:
    (task,) = await scene.accepted()
    await scene.confirm([task])
    assert await scene.upkeep.requeue(await queued(scene), 1000.0) == {TYPE: 1}
    assert await scene.state(task) == ("scheduled", 2)
    due = await scene.due(task)
    assert due is not None
    assert (due["version"], due["wait"] <= 0) == (2, True)
    assert await queued(scene) == []


async def test_tasks_that_changed_meanwhile_are_left_alone(scene: Scene) -> None:
    claimed, moved, finished, lost = tasks = await scene.accepted(4)
    await scene.confirm(tasks)
    seen = await queued(scene)
    worker = await scene.worker()
    done = await worker.claim(TYPE, {claimed: 1, finished: 1})
    await scene.settle(worker, next(claim for claim in done if claim.id == finished), succeeded(None))
    await scene.upkeep.requeue([task for task in seen if task.id == moved], 1000.0)
    assert await scene.upkeep.requeue(seen, 1000.0) == {TYPE: 1}
    assert await scene.state(claimed) == ("running", 2)
    assert await scene.state(moved) == ("scheduled", 2)
    assert (await scene.state(finished))[0] == "succeeded"
    assert await scene.state(lost) == ("scheduled", 2)


async def test_a_flood_of_lost_records_is_published_again_at_a_bounded_rate(scene: Scene) -> None:
    await scene.confirm(await scene.accepted(100))
    await scene.upkeep.requeue(await queued(scene), rate=50.0, start=10.0)
    (row,) = await scene.sql(
        "SELECT extract(epoch FROM max(publish_at) - now())::float8 AS last,"
        " extract(epoch FROM max(publish_at) - min(publish_at))::float8 AS takes FROM due"
    )
    assert row["takes"] == pytest.approx(99 / 50)
    assert row["last"] == pytest.approx(10 + 99 / 50, abs=3)


async def test_nothing_lost_runs_no_statement(scene: Scene) -> None:
    assert await scene.upkeep.requeue([], 1000.0) == {}


async def test_tasks_published_again_meanwhile_are_left_alone(scene: Scene) -> None:
    (task,) = await scene.accepted()
    await scene.confirm([task])
    seen = await queued(scene)
    await scene.upkeep.requeue(seen, 1000.0)
    (published,) = await scene.publishing.take(TYPE, 10)
    await scene.confirm([task], published.version)
    assert await scene.upkeep.requeue(seen, 1000.0) == {}
    assert await scene.state(task) == ("queued", published.version)
