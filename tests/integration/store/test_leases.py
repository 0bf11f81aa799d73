from __future__ import annotations

from itertools import pairwise
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from taskflux.store.upkeep import SQL
from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import TYPE, Scene, succeeded

LEASE, RATE = 30.0, 1000.0


async def test_a_beat_renews_the_lease_of_all_claims(scene: Scene) -> None:
    worker = await scene.worker()
    await scene.running(worker, 3)
    await scene.lose(worker)
    assert await worker.beat(3)
    assert (await scene.upkeep.sweep(LEASE, 100, RATE)).looked_at == 0


async def test_a_live_lease_is_left_alone(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    swept = await scene.upkeep.sweep(LEASE, 100, RATE)
    assert (swept.looked_at, swept.tasks) == (0, {})
    assert await scene.state(claim.id) == ("running", claim.version)


async def test_a_lease_that_ran_out_makes_its_tasks_due_again(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    swept = await scene.upkeep.sweep(LEASE, 100, RATE)
    assert (swept.looked_at, swept.tasks) == (1, {(TYPE, "scheduled"): 1})
    row = await scene.row(claim.id)
    assert (row["state"], row["version"], row["attempts"]) == ("scheduled", claim.version + 1, 1)
    assert row["error_class"] == "Ambiguous"
    due = await scene.due(claim.id)
    assert due is not None
    assert due["version"] == claim.version + 1
    assert await scene.claims() == set()
    assert [taken.id for taken in await scene.publishing.take(TYPE, 10)] == [claim.id]


async def test_only_leases_that_were_ended_are_looked_at_while_nobody_could_renew(scene: Scene) -> None:
    silent, gone = await scene.worker(), await scene.worker()
    (kept,), (freed,) = await scene.running(silent), await scene.running(gone)
    await scene.lose(silent)
    await gone.end()
    assert (await scene.upkeep.sweep(None, 100, RATE)).looked_at == 1
    assert (await scene.state(kept.id))[0] == "running"
    assert (await scene.state(freed.id))[0] == "scheduled"


async def test_claims_of_a_worker_that_nobody_knows_count_as_run_out(scene: Scene) -> None:
    worker = await scene.worker()
    await scene.running(worker)
    await scene.sql("DELETE FROM workers")
    assert (await scene.upkeep.sweep(None, 100, RATE)).looked_at == 0
    assert (await scene.upkeep.sweep(LEASE, 100, RATE)).looked_at == 1


async def test_where_the_policy_says_hold_a_lost_task_is_uncertain(scene: Scene) -> None:
    await scene.register("sms", "hold")
    worker = await scene.worker()
    (held,), (sent_again,) = await scene.running(worker, type="sms"), await scene.running(worker)
    await scene.lose(worker)
    swept = await scene.upkeep.sweep(LEASE, 100, RATE)
    assert swept.tasks == {("sms", "uncertain"): 1, (TYPE, "scheduled"): 1}
    assert await scene.state(held.id) == ("uncertain", held.version + 1)
    assert await scene.due(held.id) is None
    assert (await scene.state(sent_again.id))[0] == "scheduled"


async def test_a_type_that_is_not_registered_is_sent_again(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker, type="unheard-of")
    await scene.lose(worker)
    await scene.upkeep.sweep(LEASE, 100, RATE)
    assert (await scene.state(claim.id))[0] == "scheduled"


async def test_lost_tasks_come_back_at_a_bounded_rate_from_a_given_time_on(scene: Scene) -> None:
    worker = await scene.worker()
    await scene.running(worker, 50)
    await scene.lose(worker)
    await scene.upkeep.sweep(LEASE, 100, rate=10.0, start=100.0)
    waits = [
        row["wait"]
        for row in await scene.sql("SELECT extract(epoch FROM publish_at - now())::float8 AS wait FROM due ORDER BY 1")
    ]
    assert [later - sooner for sooner, later in pairwise(waits)] == pytest.approx([0.1] * 49)
    assert waits[0] == pytest.approx(100.0, abs=3)


async def test_no_more_are_freed_at_once_than_asked_for(scene: Scene) -> None:
    worker = await scene.worker()
    await scene.running(worker, 10)
    await scene.lose(worker)
    assert [(await scene.upkeep.sweep(LEASE, 4, RATE)).looked_at for _ in range(4)] == [4, 4, 2, 0]


async def test_a_settlement_that_comes_first_leaves_the_sweep_nothing(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    await scene.settle(worker, claim, succeeded(None))
    assert (await scene.upkeep.sweep(LEASE, 100, RATE)).looked_at == 0
    assert (await scene.state(claim.id))[0] == "succeeded"


async def test_a_lost_task_beyond_its_budget_is_claimed_once_more_to_die(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker, max_attempts=1)
    await scene.lose(worker)
    await scene.upkeep.sweep(LEASE, 100, RATE)
    heir = await scene.worker()
    (again,) = await heir.claim(TYPE, {claim.id: claim.version + 1})
    assert (again.attempt, again.max_attempts) == (2, 1)
    await scene.settle(heir, again, Decision(Event.DIED, State.DEAD, give_back=True, error_class="WorkerLost"))
    assert (await scene.row(claim.id))["attempts"] == 1


async def test_a_worker_that_beats_again_before_the_sweep_keeps_its_claims(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    ((task, version, owner),) = await scene.database.fetch(SQL["lapsed"], lease=LEASE, limit=10)
    assert await worker.beat(1)
    batch = {"ids": [task], "versions": [version], "workers": [owner], "least": task, "greatest": task}
    swept = await scene.database.fetch(SQL["sweep"], **batch, lease=LEASE, rate=RATE, start=0.0)
    assert swept == []
    assert await scene.state(claim.id) == ("running", claim.version)
    assert await scene.claims() == {(claim.id, claim.version)}


# Ends ---------------------------------------------------------------------------------------------------------------


async def test_no_beat_brings_an_ended_lease_back(scene: Scene) -> None:
    worker = await scene.worker()
    await worker.end()
    assert not await worker.beat(0)


async def test_a_supervisor_ends_the_leases_of_its_own_former_run(scene: Scene) -> None:
    mine, other = await scene.worker(origin="/data"), await scene.worker(origin="/elsewhere")
    assert await scene.upkeep.end_leases_of("/data") == 1
    assert await scene.upkeep.end_leases_of("/data") == 0
    assert not await mine.beat(0)
    assert await other.beat(0)


async def test_a_supervisor_ends_the_lease_of_one_child_that_it_saw_die(scene: Scene) -> None:
    died, lives = await scene.worker(origin="/data", pid=7), await scene.worker(origin="/data", pid=8)
    assert await scene.upkeep.end_leases_of("/data", 7) == 1
    assert not await died.beat(0)
    assert await lives.beat(0)


async def test_workers_that_are_gone_and_hold_nothing_are_forgotten(scene: Scene) -> None:
    lives, ended, holds = await scene.worker(), await scene.worker(), await scene.worker()
    silent = await scene.worker()
    await scene.running(holds)
    await ended.end()
    await holds.end()
    await scene.sql("UPDATE workers SET beat_at = now() - interval '2 hours' WHERE id = $1", silent.worker.id)
    assert await scene.upkeep.forget_workers() == 2
    kept = {row["id"] for row in await scene.sql("SELECT id FROM workers")}
    assert kept == {worker.worker.id for worker in (lives, holds)}


# The leader ---------------------------------------------------------------------------------------------------------

A, B = uuid7(), uuid7()


async def leader(scene: Scene) -> UUID:
    (row,) = await scene.sql("SELECT holder FROM leaders")
    return UUID(str(row["holder"]))


async def test_of_several_one_leads_and_renews(scene: Scene) -> None:
    assert await scene.upkeep.lead("relay", A, 10, None)
    assert not await scene.upkeep.lead("relay", B, 10, None)
    assert await scene.upkeep.lead("relay", A, 10, None)
    assert await scene.upkeep.lead("another", B, 10, None)


async def test_a_silent_leader_is_replaced(scene: Scene) -> None:
    await scene.upkeep.lead("relay", A, 10, None)
    await scene.sql("UPDATE leaders SET expires_at = now() - interval '1 second'")
    assert await scene.upkeep.lead("relay", B, 10, None)
    assert not await scene.upkeep.lead("relay", A, 10, None)
    assert await leader(scene) == B


async def test_who_resigns_makes_room_at_once_and_only_for_himself(scene: Scene) -> None:
    await scene.upkeep.lead("relay", A, 10, None)
    await scene.upkeep.resign("relay", B)
    assert not await scene.upkeep.lead("relay", B, 10, None)
    await scene.upkeep.resign("relay", A)
    assert await scene.upkeep.lead("relay", B, 10, None)


async def test_a_supervisor_that_ends_its_former_run_deposes_its_leader(scene: Scene) -> None:
    await scene.upkeep.lead("relay", A, 10, "/data")
    await scene.upkeep.end_leases_of("/data", 7)
    assert not await scene.upkeep.lead("relay", B, 10, "/data")
    await scene.upkeep.end_leases_of("/data")
    assert await scene.upkeep.lead("relay", B, 10, "/data")
