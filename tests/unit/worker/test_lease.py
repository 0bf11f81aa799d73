from __future__ import annotations

import pytest

from taskflux.store.errors import StoreUnavailable
from taskflux.worker.executor import Lease
from tests.integration.store.scene import Scene
from tests.unit.world import Clock, WatchedDatabase


async def a_lease(scene: Scene) -> tuple[Lease, Clock]:
    clock = Clock()
    return Lease(await scene.worker(), 30.0, clock), clock


async def test_before_the_first_beat_nothing_is_covered(scene: Scene) -> None:
    lease, _ = await a_lease(scene)
    assert not lease.valid
    assert not lease.covers(lease.term)


async def test_a_beat_covers_claims_for_its_seconds_and_no_longer(scene: Scene) -> None:
    lease, clock = await a_lease(scene)
    await lease.renew(0)
    clock.now += 29.9
    assert lease.valid
    assert lease.covers(lease.term)
    clock.now += 0.1
    assert not lease.valid
    assert not lease.covers(lease.term)


async def test_the_seconds_count_from_before_the_beat_was_asked_for(scene: Scene) -> None:
    """The leader may have counted from the moment that PostgreSQL wrote it: the answer's own time is not ours."""
    lease, clock = await a_lease(scene)

    async def it_takes_long() -> None:
        clock.now += 20

    assert isinstance(scene.database, WatchedDatabase)
    scene.database.when["beat"] = it_takes_long
    await lease.renew(0)
    clock.now += 10
    assert not lease.valid


async def test_beats_in_time_go_on_with_the_same_term(scene: Scene) -> None:
    lease, clock = await a_lease(scene)
    await lease.renew(0)
    term = lease.term
    for _ in range(3):
        clock.now += 29
        await lease.renew(0)
    assert lease.covers(term)


async def test_a_beat_after_a_gap_is_another_term_and_covers_no_claim_of_the_one_before(scene: Scene) -> None:
    lease, clock = await a_lease(scene)
    await lease.renew(0)
    term = lease.term
    clock.now += 30
    await lease.renew(0)
    assert lease.valid
    assert not lease.covers(term)
    assert lease.covers(lease.term)


async def test_a_beat_that_fails_renews_nothing(scene: Scene) -> None:
    lease, clock = await a_lease(scene)
    await lease.renew(0)
    assert isinstance(scene.database, WatchedDatabase)
    scene.database.unreachable.add("beat")
    clock.now += 20
    with pytest.raises(StoreUnavailable):
        await lease.renew(0)
    assert lease.valid
    clock.now += 10
    assert not lease.valid


async def test_a_lease_that_was_ended_comes_back_by_no_beat(scene: Scene) -> None:
    lease, _ = await a_lease(scene)
    await lease.renew(0)
    await lease.claims.end()
    await lease.renew(0)
    assert lease.ended
    assert not lease.valid
    assert not lease.covers(lease.term)


async def test_a_beat_tells_how_many_claims_are_not_settled(scene: Scene) -> None:
    lease, _ = await a_lease(scene)
    await lease.renew(7)
    ((in_flight,),) = await scene.sql("SELECT in_flight FROM workers WHERE id = $1", lease.claims.worker.id)
    assert in_flight == 7
