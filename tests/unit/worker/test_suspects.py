"""A worker meets suspects: tasks of a lost worker, which it runs group by group with nothing else in flight."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import cast
from uuid import UUID

import pytest

from taskflux import Receipt, Task
from taskflux.store.errors import StoreUnavailable
from taskflux.tasks.states import State
from taskflux.worker.lease import Lease
from taskflux.worker.process import Process
from taskflux.worker.settings import Settings
from taskflux.worker.suspects import Group, Suspects
from tests.integration.store.scene import TYPE, Scene
from tests.unit.worker.test_worker import Shift, queued, record
from tests.unit.worker.workplace import LEASE, Payload, Workplace
from tests.unit.world import Clock, WatchedDatabase

RATE = 1e6


class Beside:
    """A handler that remembers what ran beside what; `waits` are tasks that wait until they are let go."""

    def __init__(self) -> None:
        self.order: list[UUID] = []
        self.running: set[UUID] = set()
        self.beside: dict[UUID, set[UUID]] = {}
        self.waits: dict[UUID, asyncio.Event] = {}
        self.entered = asyncio.Event()

    async def __call__(self, task: Task[Payload]) -> Receipt:
        self.order.append(task.id)
        self.running.add(task.id)
        for each in self.running:
            self.beside.setdefault(each, set()).update(self.running - {each})
        self.entered.set()
        try:
            if task.id in self.waits:
                await self.waits[task.id].wait()
            else:
                await asyncio.sleep(0)
        finally:
            self.running.remove(task.id)
        return Receipt()


async def lost(scene: Scene, number: int) -> list[UUID]:
    """Tasks of a worker that was lost, in two groups."""
    worker = await scene.worker()
    claims = await scene.running(worker, number)
    await scene.lose(worker)
    await scene.upkeep.sweep(500, RATE)
    return sorted(claim.id for claim in claims)


async def suspects(scene: Scene, number: int) -> list[UUID]:
    """One group of suspects; the other half has been cancelled."""
    tasks = await lost(scene, 2 * number)
    await scene.sql("DELETE FROM suspects WHERE task_id = ANY($1)", tasks[number:])
    assert await scene.groups() == [set(tasks[:number])]
    return tasks[:number]


async def version(scene: Scene, task: UUID) -> int:
    return (await scene.state(task))[1]


async def states(scene: Scene, *tasks: UUID) -> set[str]:
    return {(await scene.state(task))[0] for task in tasks}


async def test_a_group_of_suspects_runs_alone_while_other_work_waits_and_continues_after(
    scene: Scene,
) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen)
    group, others = await suspects(scene, 3), await queued(scene, 4)
    first = [record(others[0]), record(group[0], await version(scene, group[0])), record(others[1])]
    shift = Shift(place, first, [record(others[2]), record(others[3])])
    await shift.work()
    assert await states(scene, *group, *others) == {"succeeded"}
    assert set(seen.order[:2]) == set(others[:2])
    assert set(seen.order[2:5]) == set(group)  # all of it, of one record
    for task in group:
        assert seen.beside[task] <= set(group)
    assert await scene.groups() == []
    assert {(await scene.row(task))["attempts"] for task in group} == {1}


async def test_the_records_of_a_group_are_done_with_once_it_is_claimed_as_a_whole(scene: Scene) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen)
    group = await suspects(scene, 3)
    batch = [record(task, await version(scene, task), offset=offset) for offset, task in enumerate(group)]
    shift = Shift(place, batch)
    await shift.work()
    assert shift.topic.done == batch
    assert "suspected" in shift.topic.before_done[0]
    assert place.database.ran["suspected"] == 1


async def test_two_groups_run_one_after_the_other_and_other_work_comes_between_them(scene: Scene) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen)
    tasks = await lost(scene, 4)
    first, second = tasks[:2], tasks[2:]
    (other,) = await queued(scene)
    both = [record(first[0], await version(scene, first[0])), record(second[0], await version(scene, second[0]))]
    shift = Shift(place, both, [record(other)])
    await shift.work()
    assert len(seen.order) == 5
    groups = [set(seen.order[:2]), set(seen.order[3:])]
    assert sorted(groups, key=min) == [set(first), set(second)]
    assert seen.order[2] == other
    assert seen.beside[other] == set()


async def test_while_it_waits_to_become_free_a_worker_takes_no_other_work(scene: Scene) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen)
    (busy, other), group = await queued(scene, 2), await suspects(scene, 2)
    seen.waits[busy] = asyncio.Event()
    batch = [record(busy), record(group[0], await version(scene, group[0]))]
    shift = Shift(place, batch, [record(other)])
    working = asyncio.create_task(shift.work())
    await seen.entered.wait()
    await until(scene, "running", *group)
    assert (seen.order, await states(scene, other)) == ([busy], {"queued"})
    seen.waits[busy].set()
    await working
    assert (seen.order[0], set(seen.order[1:3]), seen.order[3]) == (busy, set(group), other)


async def until(scene: Scene, state: str, *tasks: UUID) -> None:
    """Return once all of these are in `state`."""
    async with asyncio.timeout(20):
        while await states(scene, *tasks) != {state}:  # noqa: ASYNC110 - PostgreSQL says so
            await asyncio.sleep(0)


async def test_what_is_in_flight_and_has_not_begun_in_time_is_released(scene: Scene) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen, timeout=0.05, concurrency=1)
    slow, waiting = await queued(scene, 2)
    seen.waits[slow] = asyncio.Event()  # it is cut off by its own timeout
    group = await suspects(scene, 1)
    shift = Shift(place, [record(slow), record(waiting), record(group[0], await version(scene, group[0]))])
    await shift.work()
    assert group[0] in seen.order
    assert seen.beside[group[0]] == set()
    assert await states(scene, *group) == {"succeeded"}


async def test_a_group_has_its_worker_for_a_bounded_time_and_what_has_not_begun_by_then_stays_suspect(
    scene: Scene,
) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen, timeout=0.05, concurrency=1)
    group, (other,) = await suspects(scene, 2), await queued(scene)
    for task in group:
        seen.waits[task] = asyncio.Event()  # whichever begins hangs
    shift = Shift(place, [record(group[0], await version(scene, group[0]))], [record(other)])
    await shift.work()
    assert await states(scene, other) == {"succeeded"}
    (hung,) = set(seen.order) - {other}
    row = await scene.row(hung)
    assert (row["state"], row["attempts"], row["error_reason"]) == ("scheduled", 1, "it was cut off after 0.05 s")
    (rest,) = set(group) - {hung}
    row = await scene.row(rest)
    assert (row["state"], row["attempts"]) == ("scheduled", 0)
    assert row["error_reason"] == "it belongs to tasks of a lost worker, whose time alone is up"
    assert await scene.groups() == [{rest}]


async def test_a_group_for_which_its_worker_does_not_become_free_is_released_and_other_work_continues(
    scene: Scene,
) -> None:
    """An attempt that does not end when it is cut off holds up nothing but itself."""
    seen = Beside()
    place = await Workplace.of(scene, seen, timeout=1000.0)
    (claim,) = await place.claim()
    seen.waits[claim.id] = asyncio.Event()
    place.begin(claim)
    group = await suspects(scene, 1)
    (member,) = await place.claims.claim(TYPE, {group[0]: await version(scene, group[0])}, suspects=True)
    waiting = Group([member])
    place.begin(member, turn=waiting.turn)
    await seen.entered.wait()
    alone = Suspects(Process("process-email", Settings()), place.executor, patience=0.0, grace=0.0)
    alone.add(waiting)
    await alone.run_next()
    await until(scene, "scheduled", *group)
    row = await scene.row(group[0])
    assert (row["state"], row["attempts"], seen.order) == ("scheduled", 0, [claim.id])
    assert await scene.groups() == [set(group)]
    seen.waits[claim.id].set()
    await place.settled()


async def test_a_drain_releases_the_group_that_waits_and_it_stays_suspect(scene: Scene) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen)
    (busy,), group = await queued(scene), await suspects(scene, 2)
    seen.waits[busy] = asyncio.Event()
    shift = Shift(place, [record(busy), record(group[0], await version(scene, group[0]))])
    working = asyncio.create_task(shift.worker.run())
    await seen.entered.wait()
    await until(scene, "running", *group)
    shift.process.drain()
    seen.waits[busy].set()
    await working
    assert (seen.order, await states(scene, *group)) == ([busy], {"scheduled"})
    assert {(await scene.row(task))["attempts"] for task in group} == {0}
    assert await scene.groups() == [set(group)]


async def test_a_worker_lost_while_it_waited_to_become_free_leaves_the_group_out_of_it(scene: Scene) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen)
    (busy,), group = await queued(scene), await suspects(scene, 2)
    seen.waits[busy] = asyncio.Event()
    shift = Shift(place, [record(busy), record(group[0], await version(scene, group[0]))])
    working = asyncio.create_task(shift.worker.run())
    await seen.entered.wait()
    await until(scene, "running", *group)
    await scene.lose(place.claims)
    await scene.upkeep.sweep(500, RATE)
    assert await scene.groups() == sorted([set(group), {busy}], key=lambda each: str(min(each)))
    seen.waits[busy].set()
    shift.process.drain()
    await working


async def test_a_group_is_marked_before_it_begins_however_long_postgresql_is_unreachable(scene: Scene) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen)
    group = await suspects(scene, 1)
    shift = Shift(place, [record(group[0], await version(scene, group[0]))])
    place.database.unreachable.add("begin_alone")
    working = asyncio.create_task(shift.work())
    await place.database.failed.wait()
    assert seen.order == []
    place.database.unreachable.clear()
    await working
    assert seen.order == group


async def test_a_group_whose_claim_s_answer_was_lost_is_found_again_and_run_once(scene: Scene) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen)
    group = await suspects(scene, 2)
    batch = [record(group[0], await version(scene, group[0]))]
    claims = 0

    async def second() -> None:
        nonlocal claims
        claims += 1
        if claims == 2:
            place.database.mute.add("claim")

    place.database.when["claim"] = second
    await Shift(place, batch).work()
    assert sorted(seen.order) == group
    assert await states(scene, *group) == {"succeeded"}


async def test_a_payload_that_ends_its_worker_while_it_is_read_is_read_alone(scene: Scene) -> None:
    """What validates a payload is the application's code, too."""
    seen = Beside()
    place = await Workplace.of(scene, seen)
    (busy,), group = await queued(scene), await suspects(scene, 1)
    await scene.sql("""UPDATE tasks SET payload = '{"too": "x"}' WHERE id = $1""", group[0])
    seen.waits[busy] = asyncio.Event()
    shift = Shift(place, [record(busy), record(group[0], await version(scene, group[0]))])
    working = asyncio.create_task(shift.work())
    await seen.entered.wait()
    await until(scene, "running", *group)
    await asyncio.sleep(0)
    assert await states(scene, *group) == {"running"}
    seen.waits[busy].set()
    await working
    assert await states(scene, *group) == {State.DEAD}


@pytest.mark.parametrize(("stood_still", "groups"), [(LEASE - 1, 0), (LEASE, 2)])
async def test_a_worker_that_finds_its_lease_ended_clears_its_tasks_unless_its_loop_stood_still(
    scene: Scene, stood_still: float, groups: int
) -> None:
    """A task that holds the loop for a lease would run again for ever, if it was cleared each time."""
    claims, clock, awake = await scene.worker(), Clock(), Clock()
    lease = Lease(claims, LEASE, clock, awake)
    await lease.renew(0)
    await scene.running(claims, 3)
    await scene.lose(claims)
    await scene.upkeep.sweep(500, RATE)
    assert len(await scene.groups()) == 2
    clock.now += LEASE  # suspended, or cut off
    awake.now += stood_still
    cast("WatchedDatabase", scene.database).mute.add("clear_own_suspects")
    for _ in range(2):  # the first answer may be lost
        with suppress(StoreUnavailable):
            await lease.renew(0)
    assert len(await scene.groups()) == groups


async def test_a_beat_that_waits_for_postgresql_for_a_lease_is_not_a_blocked_loop(scene: Scene) -> None:
    """Where packets are dropped, a beat fails only after its timeouts, which are longer than a lease together."""
    claims, clock, awake = await scene.worker(), Clock(), Clock()
    lease, database = Lease(claims, LEASE, clock, awake), cast("WatchedDatabase", scene.database)
    await lease.renew(0)
    await scene.running(claims, 3)
    await scene.lose(claims)
    await scene.upkeep.sweep(500, RATE)

    async def it_takes_long() -> None:
        clock.now += LEASE
        awake.now += LEASE

    database.when["beat"] = it_takes_long
    database.unreachable.add("beat")
    with pytest.raises(StoreUnavailable):
        await lease.renew(0)
    database.when.clear()
    database.unreachable.clear()
    await lease.renew(0)
    assert await scene.groups() == []


async def test_a_log_line_says_that_suspects_run(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    place = await Workplace.of(scene, Beside())
    group = await suspects(scene, 2)
    with caplog.at_level(logging.WARNING):
        await Shift(place, [record(group[0], await version(scene, group[0]))]).work()
    assert "tasks of a lost worker run alone" in caplog.text


async def test_of_a_type_with_one_slot_a_group_runs_one_by_one(scene: Scene) -> None:
    seen = Beside()
    place = await Workplace.of(scene, seen, concurrency=1)
    group, (other,) = await suspects(scene, 3), await queued(scene)
    await Shift(place, [record(other), record(group[1], await version(scene, group[1]))]).work()
    assert seen.order[0] == other
    assert sorted(seen.order[1:]) == group
    assert not any(seen.beside.values())
