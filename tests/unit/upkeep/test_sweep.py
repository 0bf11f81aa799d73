from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import cast
from uuid import UUID

import pytest

from taskflux.store.claims import Claim
from taskflux.store.errors import StoreUnavailable
from taskflux.store.upkeep import Beat, Upkeep
from taskflux.upkeep.recovery import GAP, LOOK, ROUNDS, SWEEP, LeaseSweep
from tests.integration.store.scene import TYPE, Scene
from tests.unit.world import Clock, WatchedDatabase

LEASE = 30.0
RATE = 10.0


class Watch:
    """One leader's sweep, by a clock that the test moves."""

    def __init__(self, scene: Scene) -> None:
        self.clock = Clock()
        self.sweep = LeaseSweep(Upkeep(scene.database), LEASE, RATE, self.clock)

    async def looks(self, seconds: float = LEASE) -> None:
        """Look at once, and at every tick for so many seconds."""
        await self.sweep.tick()
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + LOOK, end)
            await self.sweep.tick()


async def running(scene: Scene, claim: Claim) -> bool:
    return (await scene.state(claim.id))[0] == "running"


async def waits(scene: Scene) -> list[float]:
    """Seconds from when each task was swept until it is due, in their order."""
    rows = await scene.sql(
        "SELECT extract(epoch FROM d.publish_at - t.updated_at)::float8 FROM due d JOIN tasks t ON t.id = d.task_id"
        " ORDER BY 1"
    )
    return [wait for (wait,) in rows]


# When a lease has expired --------------------------------------------------------------------------------------------


async def test_a_lease_has_expired_once_the_same_beat_was_seen_for_a_whole_one(scene: Scene) -> None:
    worker, watch = await scene.worker(), Watch(scene)
    (claim,) = await scene.running(worker)
    await watch.looks(LEASE - 0.01)
    assert await running(scene, claim)
    assert await worker.beat(1)
    await watch.looks(LEASE - 0.01)
    assert await running(scene, claim)
    await watch.looks(0.01)
    assert await scene.state(claim.id) == ("scheduled", claim.version + 1)
    assert not await worker.beat(1)


async def test_a_worker_that_beats_keeps_its_claims_whatever_postgresql_s_clock_says(scene: Scene) -> None:
    worker, other, watch = await scene.worker(), await scene.worker(), Watch(scene)
    (kept,), (lost,) = await scene.running(worker), await scene.running(other)
    for step in ("-40 seconds", "+40 seconds", "-1 hour", "+1 hour"):
        await scene.sql("UPDATE workers SET beat_at = now() + $1::text::interval WHERE id = $2", step, worker.worker.id)
        await watch.looks(LEASE / 2)
    assert (await running(scene, kept), await running(scene, lost)) == (True, False)


async def test_a_worker_counts_its_lease_from_before_its_beat_and_the_leader_from_after_it_was_read(
    scene: Scene,
) -> None:
    """However long the look takes: what beat while it was asked for has a whole lease from there on."""
    worker, watch = await scene.worker(), Watch(scene)
    (claim,) = await scene.running(worker)
    database = cast("WatchedDatabase", scene.database)

    async def it_takes_long() -> None:
        watch.clock.now += GAP

    database.when["beats"] = it_takes_long
    await watch.sweep.tick()
    database.when.clear()
    await watch.looks(LEASE - 0.01)
    assert await running(scene, claim)


async def test_a_gap_between_two_readings_gives_every_worker_a_whole_lease_again(scene: Scene) -> None:
    worker, watch = await scene.worker(), Watch(scene)
    (claim,) = await scene.running(worker)
    await watch.looks(LEASE - 1)
    watch.clock.now += GAP + 0.01
    await watch.looks(LEASE - 0.01)
    assert await running(scene, claim)
    await watch.looks(0.01)
    assert not await running(scene, claim)


async def test_a_reading_that_is_late_by_less_than_a_gap_goes_on_counting(scene: Scene) -> None:
    worker, watch = await scene.worker(), Watch(scene)
    (claim,) = await scene.running(worker)
    await watch.looks(LEASE - GAP)
    watch.clock.now += GAP
    await watch.sweep.tick()
    assert not await running(scene, claim)


@pytest.mark.parametrize("statement", ["beats", "end_silent", "lapsed"])
async def test_a_statement_that_failed_gives_every_worker_a_whole_lease_again(scene: Scene, statement: str) -> None:
    worker, watch = await scene.worker(), Watch(scene)
    (claim,) = await scene.running(worker)
    database = cast("WatchedDatabase", scene.database)
    await watch.looks(LEASE - 1)
    if statement == "end_silent":
        watch.clock.now += 1
    database.unreachable.add(statement)
    with pytest.raises(StoreUnavailable):
        await watch.sweep.tick()
    database.unreachable.clear()
    await watch.looks(LEASE - 0.01)
    assert await running(scene, claim)


async def test_a_start_of_postgresql_gives_every_worker_a_whole_lease_again(scene: Scene) -> None:
    worker, watch = await scene.worker(), Watch(scene)
    (claim,) = await scene.running(worker)
    upkeep = OftenStarted(scene.database, [])
    watch.sweep = LeaseSweep(upkeep, LEASE, RATE, watch.clock)
    await watch.looks(LEASE - 1)
    upkeep.starts.append(1)
    watch.clock.now += 1
    await watch.looks(LEASE - 0.01)
    assert await running(scene, claim)
    await watch.looks(0.01)
    assert not await running(scene, claim)


@dataclass(frozen=True, slots=True)
class OftenStarted(Upkeep):
    """Of a PostgreSQL that was started again as often as `starts` is long."""

    starts: list[int]

    async def beats(self) -> Mapping[UUID, Beat]:
        later = timedelta(seconds=len(self.starts))
        beats = await super(OftenStarted, self).beats()
        return {worker: Beat(beat.number, beat.server + later) for worker, beat in beats.items()}


async def test_a_new_leadership_gives_every_worker_a_whole_lease_again(scene: Scene) -> None:
    worker, watch = await scene.worker(), Watch(scene)
    (claim,) = await scene.running(worker)
    await watch.looks(LEASE - 1)
    watch.clock.now += 1
    database = cast("WatchedDatabase", scene.database)
    looks = database.ran["lapsed"]
    leading = asyncio.create_task(watch.sweep.keep_sweeping())
    async with asyncio.timeout(20):
        while database.ran["lapsed"] == looks:
            await scene.sql("SELECT")
    leading.cancel()
    await asyncio.wait([leading])
    await watch.looks(LEASE - 0.01)
    assert await running(scene, claim)


# What becomes of the claims ------------------------------------------------------------------------------------------


async def test_the_tasks_of_a_lost_worker_are_due_again_as_another_version(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await Watch(scene).looks()
    assert await scene.state(claim.id) == ("scheduled", claim.version + 1)
    row = await scene.row(claim.id)
    assert (row["attempts"], row["losses"]) == (0, 1)
    assert await scene.claims() == set()


async def test_the_tasks_of_a_lost_worker_are_held_where_the_type_says_so(scene: Scene) -> None:
    await scene.register(TYPE, "hold")
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await Watch(scene).looks()
    assert (await scene.state(claim.id))[0] == "uncertain"
    assert await scene.due(claim.id) is None


async def test_an_ended_lease_is_swept_at_the_first_reading(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await worker.end()
    await Watch(scene).sweep.tick()
    assert not await running(scene, claim)


async def test_the_tasks_of_a_worker_whose_lease_expired_become_suspects(scene: Scene) -> None:
    worker, ended = await scene.worker(), await scene.worker()
    lost = await scene.running(worker, 2)
    await scene.running(ended, 2)
    await ended.end()
    await Watch(scene).looks()
    assert await scene.groups() == [{claim.id} for claim in sorted(lost, key=lambda claim: claim.id)]


async def test_a_task_is_dead_once_it_has_ended_as_many_workers_alone_as_the_setting_says(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    await LeaseSweep(Upkeep(scene.database), LEASE, RATE, losses_alone=1).tick()
    assert (await scene.state(claim.id))[0] == "dead"


async def test_many_come_back_at_a_bounded_rate_in_one_tick_and_over_several(scene: Scene) -> None:
    watch = Watch(scene)
    for _ in range(2):
        worker = await scene.worker()
        await scene.running(worker, 3)
        await scene.lose(worker)
        await watch.sweep.tick()
    assert await waits(scene) == pytest.approx([place / RATE for place in range(6)])


async def test_more_than_one_statement_takes_are_swept_in_one_tick(scene: Scene) -> None:
    for held in (SWEEP, 1):
        worker = await scene.worker()
        await scene.running(worker, held)
        await scene.lose(worker)
    await Watch(scene).sweep.tick()
    assert await scene.claims() == set()
    assert cast("WatchedDatabase", scene.database).ran["sweep"] == 2


async def test_a_flood_of_claims_does_not_delay_the_next_reading(scene: Scene) -> None:
    for held in (*[SWEEP] * ROUNDS, 1):
        worker = await scene.worker()
        await scene.running(worker, held)
        await scene.lose(worker)
    watch = Watch(scene)
    await watch.sweep.tick()
    assert len(await scene.claims()) == 1
    await watch.sweep.tick()
    assert await scene.claims() == set()


async def test_two_sweeps_at_once_end_each_lease_and_free_each_claim_once(scene: Scene) -> None:
    workers = [await scene.worker() for _ in range(5)]
    claims = [claim for worker in workers for claim in await scene.running(worker, 10)]
    watches = [Watch(scene) for _ in range(3)]
    await asyncio.gather(*(watch.looks() for watch in watches))
    assert {await scene.state(claim.id) for claim in claims} == {("scheduled", claims[0].version + 1)}
    assert (await scene.sql("SELECT count(*) FROM due"))[0]["count"] == 50
