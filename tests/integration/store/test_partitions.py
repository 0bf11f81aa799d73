from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from taskflux.store.claims import SQL
from tests.integration.store.scene import TYPE, Scene, succeeded


def id_of(moment: datetime) -> UUID:
    """A UUIDv7 of that moment."""
    milliseconds = int(moment.timestamp() * 1000)
    return UUID(int=milliseconds << 80 | uuid7().int & (1 << 80) - 1)


def now() -> datetime:
    return datetime.now(UTC)


async def partition(scene: Scene, task: UUID) -> str:
    (row,) = await scene.sql("SELECT tableoid::regclass::text AS name FROM tasks WHERE id = $1", task)
    return str(row["name"])


async def drop_partitions_ahead(scene: Scene) -> None:
    for row in await scene.sql(
        "SELECT to_char(now() + n * interval '7 days', 'IYYY\"w\"IW') AS week FROM generate_series(1, 4) n"
    ):
        await scene.direct.execute(f'DROP TABLE "tasks_{row["week"]}"')


async def test_a_task_is_in_the_partition_of_the_week_it_was_accepted(own_scene: Scene) -> None:
    for days in (0, 7, 21):
        moment = now() + timedelta(days=days)
        (task,) = await own_scene.accepted(id=id_of(moment))
        year, week, _ = moment.isocalendar()
        assert await partition(own_scene, task) == f"tasks_{year}w{week:02}"


async def test_a_week_ends_at_midnight_between_sunday_and_monday(own_scene: Scene) -> None:
    monday = (now() + timedelta(days=14)).date()
    monday -= timedelta(days=monday.weekday())
    midnight = datetime(monday.year, monday.month, monday.day, tzinfo=UTC)
    last, first = midnight - timedelta(milliseconds=1), midnight
    names = [await partition(own_scene, (await own_scene.accepted(id=id_of(at)))[0]) for at in (last, first)]
    assert names == [f"tasks_{at.isocalendar().year}w{at.isocalendar().week:02}" for at in (last, first)]
    assert names[0] != names[1]


async def test_partitions_are_made_once(own_scene: Scene) -> None:
    assert await own_scene.upkeep.make_partitions(4) == 0
    assert await own_scene.upkeep.make_partitions(6) == 2
    assert await own_scene.upkeep.make_partitions(6) == 0


async def test_a_task_of_a_week_without_a_partition_is_stored_and_processed(own_scene: Scene) -> None:
    long_ago = id_of(datetime(2001, 1, 1, tzinfo=UTC))
    (task,) = await own_scene.accepted(id=long_ago)
    assert await partition(own_scene, task) == "tasks_default"
    worker = await own_scene.worker()
    (claim,) = await worker.claim(TYPE, {task: 1})
    assert (await own_scene.settle(worker, claim, succeeded(None))).written


async def test_rows_from_before_their_partition_move_into_it(own_scene: Scene) -> None:
    await drop_partitions_ahead(own_scene)
    ahead = [id_of(now() + timedelta(days=7 * week)) for week in (1, 2, 30)]
    for task in ahead:
        await own_scene.accepted(id=task)
    worker = await own_scene.worker()
    (claim,) = await worker.claim(TYPE, {ahead[0]: 1})
    assert await own_scene.upkeep.make_partitions(4) == 4
    assert [await partition(own_scene, task) == "tasks_default" for task in ahead] == [False, False, True]
    assert (await own_scene.settle(worker, claim, succeeded(None))).written
    assert len(await worker.claim(TYPE, {ahead[1]: 1, ahead[2]: 1})) == 2


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
async def test_a_claim_looks_only_at_the_partitions_of_its_batch(plan: str, own_scene: Scene) -> None:
    tasks = await own_scene.accepted(20)
    for _ in range(20):
        await own_scene.accepted(id=id_of(now() + timedelta(days=7)))
    touched = await relations(own_scene, plan, tasks)
    year, week, _ = now().isocalendar()
    assert {name for name in touched if name.startswith("tasks_")} == {f"tasks_{year}w{week:02}"}


async def relations(scene: Scene, plan: str, tasks: list[UUID]) -> set[str]:
    """The tables that a claim of `tasks` really reads or writes."""
    worker = await scene.worker()
    async with scene.direct.transaction():
        await scene.direct.execute(f"SET LOCAL plan_cache_mode = {plan}")
        batch = {"ids": tasks, "version": 1, "versions": [], "least": min(tasks), "greatest": max(tasks)}
        claim = SQL["claim"]
        given = {**batch, "type": TYPE, "suspects": False, "carried": 1000, "worker": worker.worker.id, "label": "x"}
        arguments = [given[name] for name in claim.parameters]
        (row,) = await scene.sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {claim.text}", *arguments)
    found: set[str] = set()
    nodes = [json.loads(row[0])[0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node["Actual Loops"] and "Relation Name" in node and node["Node Type"] != "ModifyTable":
            found.add(node["Relation Name"])
    return found
