from __future__ import annotations

import asyncio
import inspect
import shutil
import subprocess
import sys
import time

import pytest

from taskflux.store.errors import StoreUnavailable
from taskflux.worker.lease import Lease, boottime
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


async def test_beats_in_time_keep_the_same_term(scene: Scene) -> None:
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


async def test_a_worker_whose_lease_expired_continues_under_a_new_identity_without_its_claims(
    scene: Scene,
) -> None:
    lease, _ = await a_lease(scene)
    await lease.renew(0)
    before, term = lease.claims.worker.id, lease.term
    await lease.claims.end()
    await lease.renew(3)
    assert lease.claims.worker.id != before
    assert lease.valid
    assert not lease.covers(term)
    assert lease.covers(lease.term)
    rows = await scene.sql("SELECT id, ended, in_flight FROM workers ORDER BY ended")
    assert [tuple(row) for row in rows] == [(lease.claims.worker.id, False, 3), (before, True, 0)]


async def test_two_who_find_the_lease_ended_at_once_take_one_identity(scene: Scene) -> None:
    lease, _ = await a_lease(scene)
    await lease.renew(0)
    await lease.claims.end()
    await asyncio.gather(*(lease.renew(0) for _ in range(3)))
    assert len(await scene.sql("SELECT FROM workers WHERE NOT ended")) == 1


async def test_a_new_identity_whose_answer_was_lost_is_that_of_no_claim(scene: Scene) -> None:
    lease, _ = await a_lease(scene)
    await lease.renew(0)
    await lease.claims.end()
    assert isinstance(scene.database, WatchedDatabase)
    scene.database.mute.add("begin_lease")
    with pytest.raises(StoreUnavailable):
        await lease.renew(0)
    assert not lease.valid
    await lease.renew(0)
    assert lease.valid
    assert await lease.claims.beat(0)


async def test_a_worker_whose_claim_finds_its_lease_ended_is_covered_by_the_next_beat_alone(scene: Scene) -> None:
    lease, _ = await a_lease(scene)
    await lease.renew(0)
    term = lease.term
    lease.lose()
    assert not lease.valid
    await lease.renew(0)
    assert lease.valid
    assert not lease.covers(term)


# The clock -----------------------------------------------------------------------------------------------------------

WOKEN = """
import time
from taskflux.worker.lease import boottime
print(boottime() - time.monotonic())
"""


def test_the_clock_continues_while_the_machine_is_suspended() -> None:
    """A time namespace whose machine has been suspended for 1,000 s: CLOCK_MONOTONIC has not counted them."""
    suspended = ["unshare", "--user", "--map-root-user", "--time", "--boottime", "1000", "--monotonic", "0"]
    if shutil.which("unshare") is None or subprocess.run([*suspended, "true"], capture_output=True).returncode != 0:
        pytest.skip("no time namespace can be made here")
    woken = subprocess.run([*suspended, sys.executable, "-c", WOKEN], capture_output=True, check=True, text=True)
    assert float(woken.stdout) == pytest.approx(suspended_before() + 1000, abs=1)


def test_a_lease_counts_by_that_clock() -> None:
    assert inspect.signature(Lease).parameters["clock"].default is boottime


def suspended_before() -> float:
    """Seconds that this machine has been suspended since it started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


async def test_a_worker_that_was_suspended_for_a_lease_is_covered_no_longer(scene: Scene) -> None:
    lease, clock = await a_lease(scene)
    await lease.renew(0)
    term = lease.term
    clock.now += 40  # as CLOCK_BOOTTIME says on waking
    assert not lease.covers(term)
    await lease.renew(0)
    assert not lease.covers(term)


async def test_a_beat_tells_how_many_claims_are_not_settled(scene: Scene) -> None:
    lease, _ = await a_lease(scene)
    await lease.renew(7)
    ((in_flight,),) = await scene.sql("SELECT in_flight FROM workers WHERE id = $1", lease.claims.worker.id)
    assert in_flight == 7
