from __future__ import annotations

import asyncio
from typing import cast

import pytest

from taskflux.store.upkeep import Upkeep
from taskflux.upkeep.sweep import LeaseSweep
from tests.integration.store.scene import TYPE, Scene
from tests.unit.world import Clock, WatchedDatabase

LEASE = 1.0
RATE = 10.0


async def a_sweep(scene: Scene, clock: Clock | None = None) -> LeaseSweep:
    """One that looks after leases of a second: PostgreSQL has been up for as long."""
    await scene.sql("SELECT pg_sleep(greatest(0, 1.1 - extract(epoch FROM now() - pg_postmaster_start_time())))")
    return LeaseSweep(Upkeep(scene.database), LEASE, RATE, clock or Clock())


async def waits(scene: Scene) -> list[float]:
    """Seconds until each task is due, in their order."""
    rows = await scene.sql("SELECT extract(epoch FROM publish_at - now())::float8 FROM due ORDER BY publish_at")
    return [wait for (wait,) in rows]


async def test_what_a_lost_worker_held_is_due_again_as_another_version(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    await (await a_sweep(scene)).tick(led_for=LEASE)
    assert await scene.state(claim.id) == ("scheduled", claim.version + 1)
    assert (await scene.row(claim.id))["attempts"] == 1
    assert await scene.claims() == set()


async def test_what_a_lost_worker_held_is_held_where_the_type_says_so(scene: Scene) -> None:
    await scene.register(TYPE, "hold")
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    await (await a_sweep(scene)).tick(led_for=LEASE)
    assert (await scene.state(claim.id))[0] == "uncertain"
    assert await scene.due(claim.id) is None


async def test_a_worker_that_beats_keeps_its_claims(scene: Scene) -> None:
    worker, other = await scene.worker(), await scene.worker()
    (kept,) = await scene.running(worker)
    (lost,) = await scene.running(other)
    sweep = await a_sweep(scene)
    await scene.lose(other)
    await worker.beat(1)
    await sweep.tick(led_for=LEASE)
    assert ((await scene.state(kept.id))[0], (await scene.state(lost.id))[0]) == ("running", "scheduled")


async def test_a_lease_has_expired_only_once_somebody_looked_for_a_whole_one(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    sweep = await a_sweep(scene)
    await sweep.tick(led_for=LEASE - 0.01)
    assert (await scene.state(claim.id))[0] == "running"


async def test_after_a_start_of_postgresql_workers_have_a_whole_lease_to_beat(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.sql("UPDATE workers SET beat_at = now() - interval '100 years'")
    await LeaseSweep(Upkeep(scene.database), 1e9, RATE).tick(led_for=1e9)  # longer than PostgreSQL is up
    assert (await scene.state(claim.id))[0] == "running"


async def test_a_lease_that_was_ended_is_swept_without_patience(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await worker.end()
    await (await a_sweep(scene)).tick(led_for=0.0)
    assert (await scene.state(claim.id))[0] == "scheduled"


async def test_many_come_back_at_a_bounded_rate_in_one_tick_and_over_several(scene: Scene) -> None:
    clock = Clock()
    sweep = await a_sweep(scene, clock)
    for expected in (3, 6):
        worker = await scene.worker()
        await scene.running(worker, 3)
        await scene.lose(worker)
        await sweep.tick(led_for=LEASE)
        assert len(await waits(scene)) == expected
    first, *_, last = await waits(scene)
    assert last - first == pytest.approx(5 / RATE, abs=0.2)


async def test_more_than_one_statement_takes_are_swept_in_one_tick(scene: Scene) -> None:
    worker = await scene.worker()
    await scene.running(worker, 501)
    await scene.lose(worker)
    await (await a_sweep(scene)).tick(led_for=LEASE)
    assert await scene.claims() == set()
    assert cast("WatchedDatabase", scene.database).ran["sweep"] == 2


async def test_two_sweeps_at_once_free_each_claim_once(scene: Scene) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker, 50)
    await scene.lose(worker)
    sweeps = [await a_sweep(scene) for _ in range(3)]
    await asyncio.gather(*(sweep.tick(led_for=LEASE) for sweep in sweeps))
    assert {await scene.state(claim.id) for claim in claims} == {("scheduled", claims[0].version + 1)}
