"""What the sweep makes of a lost worker's tasks, and how long that lasts."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from taskflux.store.claims import Claim, Claims
from taskflux.store.dead_letters import DeadLetter
from taskflux.store.tasks import Resolution
from taskflux.tasks.decision import Decision, release
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import TYPE, Scene, succeeded

RATE = 1e6
ORIGIN = {"topic": "tasks.dlq", "partition": 0, "offset": 7, "timestamp": 1}
RETRY = Decision(Event.RETRY, State.SCHEDULED, error_class="Transient", reason="busy")
PROVIDER_FAILED = Decision(Event.RELEASED, State.SCHEDULED, give_back=True, error_class="ProviderUnavailable")


async def lose(scene: Scene, worker: Claims) -> None:
    """The worker is lost, and swept."""
    await scene.lose(worker)
    await scene.upkeep.sweep(500, RATE)


async def claim(scene: Scene, tasks: Sequence[UUID], *, suspects: bool = False) -> tuple[Claims, list[Claim]]:
    """What another worker gets of these tasks as they stand."""
    worker = await scene.worker()
    versions = {task: (await scene.state(task))[1] for task in tasks}
    return worker, list(await worker.claim(TYPE, versions, suspects=suspects))


async def run_alone(scene: Scene, *tasks: UUID) -> tuple[Claims, list[Claim]]:
    """A worker that has begun to run these suspects with nothing else in flight."""
    worker, claims = await claim(scene, tasks, suspects=True)
    assert {each.id for each in claims} == set(tasks)
    await worker.begin_alone(claims)
    return worker, claims


async def lost_together(scene: Scene, number: int, **changes: object) -> list[UUID]:
    """Tasks that were lost with their worker."""
    worker = await scene.worker()
    claims = await scene.running(worker, number, **changes)
    await lose(scene, worker)
    return sorted(each.id for each in claims)


# Losses and attempts -------------------------------------------------------------------------------------------------


async def test_a_loss_is_counted_apart_and_spends_no_attempt(scene: Scene) -> None:
    tasks = await lost_together(scene, 2)
    for task in tasks:
        row = await scene.row(task)
        assert (row["state"], row["attempts"], row["losses"]) == ("scheduled", 0, 1)
        *_, last = await scene.timeline(task)
        assert (last["event"], last["attempt"]) == ("lease-ran-out", 0)
        assert last["note"] == "it runs again with 0 others and nothing else"


async def test_a_task_that_lost_more_workers_than_it_has_attempts_is_run_all_the_same(scene: Scene) -> None:
    task, other = await lost_together(scene, 2, max_attempts=1)
    worker, (again,) = await run_alone(scene, task)
    assert (again.attempt, again.max_attempts) == (1, 1)
    await scene.settle(worker, again, succeeded(None))
    row = await scene.row(task)
    assert (row["state"], row["attempts"], row["losses"]) == ("succeeded", 1, 1)
    assert await scene.groups() == [{other}]


async def test_a_late_outcome_shows_the_attempt_that_did_happen_and_ends_the_suspicion(scene: Scene) -> None:
    worker = await scene.worker()
    first, second = await scene.running(worker, 2)
    await lose(scene, worker)
    assert (await scene.settle(worker, first, succeeded(None))).late
    row = await scene.row(first.id)
    assert (row["state"], row["attempts"], row["losses"]) == ("succeeded", 1, 1)
    assert await scene.groups() == [{second.id}]


async def test_a_late_outcome_that_changes_nothing_leaves_the_task_a_suspect(scene: Scene) -> None:
    worker = await scene.worker()
    first, second = await scene.running(worker, 2)
    await lose(scene, worker)
    assert not (await scene.settle(worker, first, RETRY)).written
    assert await scene.groups() == [{task} for task in sorted((first.id, second.id))]


async def test_a_held_task_that_is_resent_gets_its_attempt_back(scene: Scene) -> None:
    await scene.register(TYPE, "hold")
    (task,) = await lost_together(scene, 1, max_attempts=3)
    row = await scene.row(task)
    assert (row["state"], row["attempts"], row["losses"]) == ("uncertain", 1, 1)
    assert await scene.tasks.resolve(task, None, Resolution.RESEND)
    assert (await scene.row(task))["attempts"] == 0


async def test_under_the_policy_hold_no_task_is_a_suspect_or_runs_again(scene: Scene) -> None:
    await scene.register(TYPE, "hold")
    for task in await lost_together(scene, 5):
        assert (await scene.state(task))[0] == "uncertain"
        assert await scene.due(task) is None
    assert await scene.groups() == []


# Halves --------------------------------------------------------------------------------------------------------------


async def test_lost_tasks_run_again_in_two_halves_then_in_quarters(scene: Scene) -> None:
    tasks = await lost_together(scene, 21)
    assert await scene.groups() == [set(tasks[:10]), set(tasks[10:])]
    worker, _ = await run_alone(scene, *tasks[10:])
    await lose(scene, worker)
    assert await scene.groups() == [set(tasks[:10]), set(tasks[10:15]), set(tasks[15:])]
    assert {(await scene.row(task))["losses"] for task in tasks[10:]} == {2}
    assert {(await scene.row(task))["losses"] for task in tasks[:10]} == {1}


async def test_one_of_a_batch_of_one_is_dead_after_three_losses(scene: Scene) -> None:
    (task,) = await lost_together(scene, 1)
    for _ in range(2):
        assert (await scene.state(task))[0] == "scheduled"
        worker, _ = await run_alone(scene, task)
        await lose(scene, worker)
    row = await scene.row(task)
    assert (row["state"], row["error_class"], row["attempts"], row["losses"]) == ("dead", "WorkerLost", 0, 3)
    assert row["error_reason"] == "it ended its worker while it ran alone, 3 times"
    assert await scene.due(task, dead=True) is not None
    assert [letter.id for letter in await scene.publishing.take_dead(10)] == [task]
    assert await scene.claims() == set()


async def test_two_killers_are_found_and_their_neighbours_are_not_charged(scene: Scene) -> None:
    tasks = await lost_together(scene, 12)
    killers, kills = {tasks[3], tasks[4]}, 1
    while groups := await scene.groups():
        worker, claims = await run_alone(scene, *groups[0])
        if killers & groups[0]:
            kills += 1
            await lose(scene, worker)
        else:
            for each in claims:
                await scene.settle(worker, each, succeeded(None))
    rows = [await scene.row(task) for task in tasks]
    assert {row["id"] for row in rows if row["state"] == "dead"} == killers
    assert {(row["state"], row["attempts"]) for row in rows if row["id"] not in killers} == {("succeeded", 1)}
    assert kills <= 11


async def test_the_tasks_of_one_worker_are_halved_together_however_many_they_are(scene: Scene) -> None:
    worker, other = await scene.worker(), await scene.worker()
    await scene.running(worker, 7)
    await scene.running(other, 2)
    await scene.lose(worker)
    await scene.lose(other)
    swept = [(await scene.upkeep.sweep(5, RATE)).looked_at for _ in range(3)]
    assert swept == [7, 2, 0]
    assert sorted(map(len, await scene.groups())) == [1, 1, 3, 4]


async def test_a_worker_lost_while_a_group_waited_for_its_turn_leaves_the_group_as_it_was(scene: Scene) -> None:
    tasks = await lost_together(scene, 4)
    group, _ = await scene.groups()
    worker, _ = await claim(scene, sorted(group), suspects=True)
    (busy,) = await scene.running(worker)
    await lose(scene, worker)
    assert await scene.groups() == [group, set(tasks) - group, {busy.id}]
    assert {((await scene.row(task))["losses"], (await scene.row(task))["attempts"]) for task in group} == {(1, 0)}
    assert await scene.sql("SELECT task_id FROM suspects WHERE cardinality(alone) > 0") == [(busy.id,)]


async def test_a_group_that_began_and_what_ran_beside_it_are_halved_together(scene: Scene) -> None:
    """A worker takes other work again where a task of the group outlasts its time."""
    task, _ = await lost_together(scene, 2)
    worker, _ = await run_alone(scene, task)
    (beside,) = await scene.running(worker)
    await lose(scene, worker)
    assert await scene.sql("SELECT task_id FROM suspects WHERE cardinality(alone) > 0") == []
    assert {task} in await scene.groups()
    assert {beside.id} in await scene.groups()


async def test_two_leaders_at_once_free_each_task_once(scene: Scene) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker, 9)
    await scene.lose(worker)
    first, second = await scene.upkeep.sweep(500, RATE), await scene.upkeep.sweep(500, RATE)
    assert (first.looked_at, second.looked_at) == (9, 0)
    assert {(await scene.row(each.id))["losses"] for each in claims} == {1}


# Who claims suspects -------------------------------------------------------------------------------------------------


async def test_a_suspect_is_claimed_with_its_group_or_not_at_all(scene: Scene) -> None:
    first, second, third, fourth = await lost_together(scene, 4)
    (other,) = await scene.accepted()
    worker, claims = await claim(scene, [first, other])
    assert [each.id for each in claims] == [other]
    version = (await scene.state(first))[1]
    (group,) = await worker.suspected({first: version, other: 1})
    assert set(group) == {first, second}
    assert await worker.suspected({first: version - 1}) == []  # a record that is out of date
    assert {each.id for each in await worker.claim(TYPE, group, suspects=True)} == {first, second}
    assert await worker.suspected({second: version}) == []  # it runs
    assert await scene.groups() == [{first, second}, {third, fourth}]


async def test_two_workers_that_want_a_group_get_it_once(scene: Scene) -> None:
    first, second, *_ = await lost_together(scene, 4)
    one, other = await scene.worker(), await scene.worker()
    version = (await scene.state(first))[1]
    ((wanted,), (also_wanted,)) = await one.suspected({first: version}), await other.suspected({second: version})
    assert wanted == also_wanted
    assert len(await one.claim(TYPE, wanted, suspects=True)) == 2
    assert await other.claim(TYPE, also_wanted, suspects=True) == []


# How long a suspicion lasts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decision",
    [succeeded(None), RETRY, Decision(Event.DIED, State.DEAD), Decision(Event.HELD, State.UNCERTAIN), PROVIDER_FAILED],
    ids=lambda decision: decision.event,
)
async def test_a_task_that_ran_without_ending_its_worker_is_no_longer_a_suspect(
    scene: Scene, decision: Decision
) -> None:
    task, other = await lost_together(scene, 2)
    worker, (again,) = await run_alone(scene, task)
    await scene.settle(worker, again, decision)
    assert await scene.groups() == [{other}]


async def test_a_suspect_that_is_released_stays_a_suspect(scene: Scene) -> None:
    first, second, *_ = await lost_together(scene, 4)
    worker, claims = await run_alone(scene, first, second)
    for each in claims:
        await scene.settle(worker, each, release("drain"))
    assert {first, second} in await scene.groups()
    # Claimed again it has not begun, so that it is no reason for the loss of that worker.
    worker, _ = await claim(scene, [first, second], suspects=True)
    await lose(scene, worker)
    assert {first, second} in await scene.groups()


async def test_the_beginning_of_a_group_that_is_written_late_does_not_hide_a_later_one(scene: Scene) -> None:
    """A worker that could not reach PostgreSQL writes it again, whatever has become of the group since."""
    task, _ = await lost_together(scene, 2)
    first, claims = await run_alone(scene, task)
    await scene.settle(first, claims[0], release("drain"))
    second, _ = await run_alone(scene, task)
    await first.begin_alone(claims)
    await lose(scene, second)
    assert await scene.sql("SELECT task_id FROM suspects WHERE cardinality(alone) > 0") == [(task,)]


async def test_a_suspect_that_is_cancelled_is_no_longer_one(scene: Scene) -> None:
    task, other = await lost_together(scene, 2)
    assert await scene.tasks.cancel(task, "default")
    assert await scene.groups() == [{other}]


async def test_a_suspect_that_expires_while_it_waits_is_no_longer_one(scene: Scene) -> None:
    task, other = await lost_together(scene, 2)
    await scene.sql("UPDATE due SET expires_at = now() - interval '1 second' WHERE task_id = $1", task)
    await scene.sql("UPDATE tasks SET expires_at = now() - interval '1 second' WHERE id = $1", task)
    assert await scene.publishing.expire(10) == [TYPE]
    assert await scene.groups() == [{other}]


async def test_a_replay_of_a_killer_starts_afresh(scene: Scene) -> None:
    (task,) = await lost_together(scene, 1)
    for _ in range(2):
        worker, _ = await run_alone(scene, task)
        await lose(scene, worker)
    letter = uuid7()
    version = (await scene.state(task))[1]
    await scene.dead_letters.add(
        [DeadLetter(letter, f"task:{task}:{version}", "WorkerLost", "", ORIGIN, task, version, TYPE)]
    )
    assert await scene.dead_letters.replay("default", letter, None)
    row = await scene.row(task)
    assert (row["state"], row["attempts"], row["losses"]) == ("scheduled", 0, 0)
    assert await scene.groups() == []
    worker, (again,) = await claim(scene, [task])
    assert again.attempt == 1
    await lose(scene, worker)
    assert (await scene.state(task))[0] == "scheduled"


async def test_suspects_that_an_older_release_has_settled_are_forgotten(scene: Scene) -> None:
    worker = await scene.worker()
    settled, other = await scene.running(worker, 2)
    await lose(scene, worker)
    await scene.settle(worker, settled, succeeded(None))
    group = worker.worker.id
    await scene.sql("INSERT INTO suspects (task_id, group_id, lost) VALUES ($1, $2, $2)", settled.id, group)
    assert await scene.upkeep.clear_suspects() == 1
    assert await scene.groups() == [{other.id}]


# Workers that are not lost ------------------------------------------------------------------------------------------


async def test_a_worker_that_ends_its_lease_itself_makes_no_suspects(scene: Scene) -> None:
    worker = await scene.worker()
    (task,) = await scene.running(worker)
    await worker.end()
    await scene.upkeep.sweep(500, RATE)
    row = await scene.row(task.id)
    assert (row["state"], row["attempts"], row["losses"]) == ("scheduled", 0, 0)
    assert await scene.groups() == []


async def test_a_supervisor_that_ends_its_former_run_makes_no_suspects(scene: Scene) -> None:
    worker = await scene.worker(origin="/data")
    await scene.running(worker, 2)
    await scene.upkeep.end_leases_of("/data")
    await scene.upkeep.sweep(500, RATE)
    assert await scene.groups() == []


async def test_a_child_that_its_supervisor_saw_die_makes_suspects(scene: Scene) -> None:
    worker = await scene.worker(origin="/data", pid=7)
    await scene.running(worker, 2)
    await scene.upkeep.end_leases_of("/data", 7)
    await scene.upkeep.sweep(500, RATE)
    assert len(await scene.groups()) == 2


async def test_a_worker_that_was_cut_off_or_suspended_clears_its_tasks_when_it_is_back(scene: Scene) -> None:
    alive, dead = await scene.worker(), await scene.worker()
    await scene.running(alive, 3)
    await scene.running(dead, 2)
    await lose(scene, alive)
    await lose(scene, dead)
    assert len(await scene.groups()) == 4
    await alive.clear_suspects()
    assert len(await scene.groups()) == 2


async def test_a_worker_that_is_back_before_its_claims_were_freed_makes_no_suspects(scene: Scene) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker, 3)
    await scene.lose(worker)
    await worker.clear_suspects()
    assert (await scene.upkeep.sweep(500, RATE)).looked_at == 3
    assert {(await scene.state(each.id))[0] for each in claims} == {"scheduled"}
    assert await scene.groups() == []


async def test_a_loss_that_proved_wrong_does_not_count_towards_a_tasks_limit(scene: Scene) -> None:
    (task,) = await lost_together(scene, 1)
    cut_off, _ = await run_alone(scene, task)
    await lose(scene, cut_off)
    await cut_off.clear_suspects()
    for expected in ("scheduled", "dead"):
        worker, _ = await run_alone(scene, task)
        await lose(scene, worker)
        assert (await scene.state(task))[0] == expected
