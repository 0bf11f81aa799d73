from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from taskflux.local.servers import PostgresServer
from taskflux.store.claims import Claims, LeaseEnded
from taskflux.store.database import Database
from taskflux.store.migrate import migrate
from taskflux.store.settings import PostgresSettings
from taskflux.store.upkeep import Beat
from tests.integration.store.scene import TYPE, Scene, succeeded

RATE = 1000.0


async def test_each_beat_raises_a_count(scene: Scene) -> None:
    worker, other = await scene.worker(), await scene.worker()
    before = await scene.upkeep.beats()
    for _ in range(3):
        assert await worker.beat(0)
    after = await scene.upkeep.beats()
    assert after[worker.worker.id].number == before[worker.worker.id].number + 3
    assert after[other.worker.id] == before[other.worker.id]


async def test_a_beat_of_the_previous_release_which_only_sets_a_time_counts_too(scene: Scene) -> None:
    """Its workers continue while the new relay leads: this is exactly the statement that they run."""
    worker = await scene.worker()
    row = worker.worker
    for expected in (1, 2):
        await scene.sql(
            "INSERT INTO workers (id, handler, label, origin, pid, in_flight, type) VALUES ($1, $2, $3, $4, $5, $6, $7)"
            " ON CONFLICT (id) DO UPDATE SET beat_at = now(), in_flight = EXCLUDED.in_flight WHERE NOT workers.ended"
            " RETURNING id",
            *(row.id, row.handler, row.label, row.origin, row.pid, 0, row.type),
        )
        assert (await scene.upkeep.beats())[row.id].number == expected


async def test_a_start_of_postgresql_makes_every_beat_another(servers_dir: Path) -> None:
    """So that the leader gives every worker a whole lease again, though it may not have been interrupted itself."""
    async with PostgresServer(servers_dir / f"restarted-{uuid7()}") as server:
        settings = PostgresSettings.model_validate({"dsn": server.dsn})
        await migrate(settings)
        seen: list[Mapping[UUID, Beat]] = []
        for restarted in (False, True):
            if restarted:
                await server.stop()
                await server.start()
            database = Database(settings, pool_size=2)
            await database.open()
            async with Scene.over(settings.model_copy(update={"migrate_dsn": settings.dsn}), database) as scene:
                if not seen:
                    await scene.worker()
                seen.append(await scene.upkeep.beats())
                assert await scene.upkeep.beats() == seen[-1]
            await database.close()
    ((before,), (after,)) = (each.values() for each in seen)
    assert (before.number, before.server < after.server) == (after.number, True)


async def test_a_live_lease_is_left_alone(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    swept = await scene.upkeep.sweep(100, RATE)
    assert (swept.looked_at, swept.tasks) == (0, {})
    assert await scene.state(claim.id) == ("running", claim.version)


async def test_a_lease_that_was_ended_makes_its_tasks_due_again(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    swept = await scene.upkeep.sweep(100, RATE)
    assert (swept.looked_at, swept.tasks) == (1, {(TYPE, "scheduled"): 1})
    row = await scene.row(claim.id)
    assert (row["state"], row["version"], row["attempts"]) == ("scheduled", claim.version + 1, 0)
    assert (row["error_class"], row["losses"]) == ("Ambiguous", 1)
    due = await scene.due(claim.id)
    assert due is not None
    assert due["version"] == claim.version + 1
    assert await scene.claims() == set()
    assert [taken.id for taken in await scene.publishing.take(TYPE, 10)] == [claim.id]


async def test_claims_of_an_unknown_worker_are_freed(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.sql("DELETE FROM workers")
    assert (await scene.upkeep.sweep(100, RATE)).looked_at == 1
    assert (await scene.state(claim.id))[0] == "scheduled"


async def test_where_the_policy_says_hold_a_lost_task_is_uncertain(scene: Scene) -> None:
    await scene.register("sms", "hold")
    worker = await scene.worker()
    (held,), (sent_again,) = await scene.running(worker, type="sms"), await scene.running(worker)
    await scene.lose(worker)
    swept = await scene.upkeep.sweep(100, RATE)
    assert swept.tasks == {("sms", "uncertain"): 1, (TYPE, "scheduled"): 1}
    assert await scene.state(held.id) == ("uncertain", held.version + 1)
    assert await scene.due(held.id) is None
    assert (await scene.state(sent_again.id))[0] == "scheduled"


async def test_a_task_of_an_unregistered_type_is_resent(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker, type="unheard-of")
    await scene.lose(worker)
    await scene.upkeep.sweep(100, RATE)
    assert (await scene.state(claim.id))[0] == "scheduled"


async def test_lost_tasks_come_back_at_a_bounded_rate_from_a_given_time_on(scene: Scene) -> None:
    worker = await scene.worker()
    await scene.running(worker, 50)
    await scene.lose(worker)
    await scene.upkeep.sweep(100, rate=10.0, start=100.0)
    waits = [
        row["wait"]
        for row in await scene.sql("SELECT extract(epoch FROM publish_at - now())::float8 AS wait FROM due ORDER BY 1")
    ]
    assert [later - sooner for sooner, later in pairwise(waits)] == pytest.approx([0.1] * 49)
    assert waits[0] == pytest.approx(100.0, abs=3)


async def test_no_more_workers_claims_are_freed_at_once_than_asked_for(scene: Scene) -> None:
    for held in (3, 4, 2):
        worker = await scene.worker()
        await scene.running(worker, held)
        await scene.lose(worker)
    assert [(await scene.upkeep.sweep(4, RATE)).looked_at for _ in range(3)] == [7, 2, 0]


async def test_a_settlement_that_comes_first_leaves_the_sweep_nothing(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    await scene.settle(worker, claim, succeeded(None))
    assert (await scene.upkeep.sweep(100, RATE)).looked_at == 0
    assert (await scene.state(claim.id))[0] == "succeeded"


# Ends ---------------------------------------------------------------------------------------------------------------


async def ended(scene: Scene, worker: Claims) -> bool:
    return worker.worker.id not in await scene.upkeep.beats()


async def test_a_lease_is_ended_while_its_beat_is_the_one_that_was_seen(scene: Scene) -> None:
    silent, beats = await scene.worker(), await scene.worker()
    seen = await scene.upkeep.beats()
    await beats.beat(0)
    (row,) = await scene.upkeep.end_silent(seen, [])
    assert (row["label"], row["in_flight"]) == (silent.worker.label, 0)
    assert (await ended(scene, silent), await ended(scene, beats)) == (True, False)


async def test_a_lease_that_two_processes_end_is_ended_once(scene: Scene) -> None:
    for _ in range(20):
        await scene.worker()
    seen = await scene.upkeep.beats()
    ends = await asyncio.gather(*(scene.upkeep.end_silent(seen, list(seen)) for _ in range(3)))
    assert sum(map(len, ends)) == 20


async def test_a_worker_whose_lease_was_ended_claims_nothing(scene: Scene) -> None:
    worker = await scene.worker()
    (task,) = await scene.accepted()
    await scene.confirm([task])
    await worker.end()
    with pytest.raises(LeaseEnded):
        await worker.claim(TYPE, {task: 1})
    assert (await scene.state(task))[0] == "queued"
    assert await scene.claims() == set()


async def test_a_worker_that_never_began_claims_nothing(scene: Scene) -> None:
    worker = await scene.worker()
    (task,) = await scene.accepted()
    await scene.sql("DELETE FROM workers")
    with pytest.raises(LeaseEnded):
        await worker.claim(TYPE, {task: 1})
    assert (await scene.state(task))[0] == "scheduled"


async def test_a_claim_whose_answer_was_lost_is_not_found_again_once_the_lease_was_ended(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    assert [found.id for found in await worker.reclaim({claim.id: claim.version - 1})] == [claim.id]
    await worker.end()
    assert await worker.reclaim({claim.id: claim.version - 1}) == []


@asynccontextmanager
async def claim_under_way(scene: Scene, worker: Claims, task: UUID) -> AsyncIterator[asyncio.Task[Any]]:
    """A claim of `worker` that waits for the row of `task`, which another transaction holds as long as the block."""
    holder = await asyncpg.connect(scene.settings.migrate_dsn.get_secret_value() if scene.settings.migrate_dsn else "")
    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", task)
            claiming = asyncio.create_task(worker.claim(TYPE, {task: 1}))
            async with asyncio.timeout(20):
                while not await scene.sql("SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"):
                    pass
            yield claiming
    finally:
        await holder.close()


async def test_a_claim_and_the_end_of_its_lease_do_not_pass_each_other(scene: Scene) -> None:
    worker = await scene.worker()
    (task,) = await scene.accepted()
    seen = await scene.upkeep.beats()
    async with claim_under_way(scene, worker, task) as claiming:
        assert await scene.upkeep.end_silent(seen, []) == []
        assert not claiming.done()
    (claim,) = await claiming
    assert len(await scene.upkeep.end_silent(seen, [])) == 1
    assert (await scene.upkeep.sweep(100, RATE)).looked_at == 1
    assert await scene.state(task) == ("scheduled", claim.version + 1)


async def test_a_worker_beats_while_its_claim_is_running(scene: Scene) -> None:
    worker = await scene.worker()
    (task,) = await scene.accepted()
    async with claim_under_way(scene, worker, task) as claiming:
        assert await worker.beat(1)
        assert not claiming.done()
    assert [claim.id for claim in await claiming] == [task]


async def test_an_abandoned_claim_does_not_keep_its_worker_s_other_tasks(scene: Scene) -> None:
    """A node that was cut off in the middle of an answer: PostgreSQL may try to send it for a quarter of an hour."""
    worker = await scene.worker()
    (held,) = await scene.running(worker)
    (task,) = await scene.accepted()
    seen = await scene.upkeep.beats()
    async with claim_under_way(scene, worker, task) as claiming:
        assert len(await scene.upkeep.end_silent(seen, [worker.worker.id])) == 1
        assert (await scene.upkeep.sweep(100, RATE)).looked_at == 1
        assert (await scene.state(held.id))[0] == "scheduled"
    (late,) = await claiming
    assert (await scene.upkeep.sweep(100, RATE)).looked_at == 1
    assert await scene.state(task) == ("scheduled", late.version + 1)


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


async def test_workers_without_a_lease_and_without_claims_are_deleted(scene: Scene) -> None:
    lives, left, holds = await scene.worker(), await scene.worker(), await scene.worker()
    await scene.running(holds)
    await left.end()
    await holds.end()
    await scene.sql("UPDATE workers SET beat_at = now() - interval '2 hours' WHERE id = $1", lives.worker.id)
    assert await scene.upkeep.forget_workers() == 1
    kept = {row["id"] for row in await scene.sql("SELECT id FROM workers")}
    assert kept == {worker.worker.id for worker in (lives, holds)}


# The leader ---------------------------------------------------------------------------------------------------------

A, B = uuid7(), uuid7()


async def leader(scene: Scene) -> UUID:
    (row,) = await scene.sql("SELECT holder FROM leaders")
    return UUID(str(row["holder"]))


async def test_one_of_several_processes_leads_and_renews(scene: Scene) -> None:
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


async def test_a_leader_that_resigns_is_replaced_at_once_and_ends_only_its_own_leadership(scene: Scene) -> None:
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
