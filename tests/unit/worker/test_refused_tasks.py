"""Tasks whose own fault is taken for the provider's, and the one that they must not hold: over a real store."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest

from taskflux import Misconfigured, Receipt, Task
from taskflux.tasks.policy import FIRST_PROBE, LAST_PROBE, MOST_PROBES, OPEN_AFTER
from tests.integration.store.scene import TYPE, Scene
from tests.unit.worker.workplace import PROVIDER, Payload, Workplace

BAD = 40


async def work(task: Task[Payload]) -> Receipt:
    """What a provider does that takes an odd task for a wrong setting, and cannot be checked."""
    if task.payload.to == "bad":
        raise Misconfigured("something about it is wrong")
    return Receipt({})


async def ran(place: Workplace, tasks: Sequence[UUID], version: int = 1) -> None:
    """These were published, and have run one after another."""
    await place.scene.confirm(tasks, version)
    for claim in await place.claims.claim(TYPE, dict.fromkeys(tasks, version)):
        place.begin(claim)
        await place.settled()


async def probed(place: Workplace) -> list[UUID]:
    """The time of the next probe has come: what it was drawn from, once it has run."""
    scene = place.scene
    await scene.sql("UPDATE circuits SET probe_at = now() - interval '1 millisecond'")
    breadth = await scene.circuits.take_probe(PROVIDER)
    taken = await scene.publishing.take(TYPE, breadth, probe=True)
    claims = await place.claims.claim(TYPE, {each.id: each.version for each in taken})
    place.clock.now += 1
    place.begin(*claims, probe=True)
    await place.settled()
    return [claim.id for claim in claims]


async def test_forty_tasks_that_their_provider_refuses_hold_a_good_one_for_less_than_a_minute(scene: Scene) -> None:
    place = await Workplace.of(scene, work, client=object(), concurrency=1)
    bad = await scene.accepted(BAD, payload='{"to": "bad"}')
    (good,) = await scene.accepted(payload='{"to": "good"}')
    await ran(place, bad[:OPEN_AFTER])
    assert place.gate.open
    waiting = [*bad[OPEN_AFTER:], good]  # for which the provider has not failed, the good one as the last
    await scene.make_due(*waiting)
    await scene.sql("UPDATE due SET publish_at = publish_at + interval '10 ms' WHERE task_id = $1", good)
    before: list[UUID] = []
    drawn: list[UUID] = []
    probes = 0
    while place.gate.open:
        probes += 1
        before, drawn = drawn, drawn + await probed(place)
    assert (await scene.row(good))["state"] == "succeeded"
    # Those that have failed are due again after some seconds, and are not drawn before all others were.
    assert set(waiting) <= set(drawn)
    assert set(before).isdisjoint(bad[:OPEN_AFTER])
    assert len(before) == len(set(before))
    assert sum(min(LAST_PROBE, FIRST_PROBE * 2.0**number) for number in range(probes)) < 60
    assert [row["attempts"] for row in await scene.sql("SELECT attempts FROM tasks WHERE id = ANY($1)", bad)] == [
        0
    ] * BAD


async def test_where_all_have_failed_a_probe_is_drawn_from_those_that_failed_least(scene: Scene) -> None:
    place = await Workplace.of(scene, work, client=object())
    bad = await scene.accepted(6, payload='{"to": "bad"}')
    await ran(place, bad)
    await scene.sql("UPDATE tasks SET handbacks = 3 WHERE id = ANY($1)", bad[:4])
    await scene.make_due(*bad)
    assert {each.id for each in await scene.publishing.take(TYPE, 2, probe=True)} == set(bad[4:])


async def test_what_was_only_released_has_not_failed_and_is_drawn_first(scene: Scene) -> None:
    place = await Workplace.of(scene, work, client=object())
    bad = await scene.accepted(5, payload='{"to": "bad"}')
    await ran(place, bad)
    assert place.gate.open
    assert [row["handbacks"] for row in [await scene.row(task) for task in bad]] == [1, 1, 1, 0, 0]
    await scene.make_due(*bad[:3])
    await scene.make_due(*bad[3:])
    assert {each.id for each in await scene.publishing.take(TYPE, 2, probe=True)} == set(bad[3:])


async def test_tasks_that_alone_are_refused_back_off_and_pay_and_open_no_circuit(scene: Scene) -> None:
    place = await Workplace.of(scene, work, client=object())
    bad = await scene.accepted(5 * OPEN_AFTER, payload='{"to": "bad"}')
    waits: list[float] = []
    for _ in range(5):
        for task in bad:
            await place.lease.renew(0)
            place.clock.now += 1
            await ran(place, [task], version=(await scene.row(task))["version"])
            if task == bad[0]:
                due = await scene.due(task)
                assert due is not None
                waits.append(due["wait"])
            place.clock.now += 1
            await ran(place, await scene.accepted(payload='{"to": "good"}'))
        assert not place.gate.open
    assert waits == pytest.approx([3.75, 7.5, 15.0, 50.0, 100.0], abs=3.0)  # from the fourth on, the retry's backoff
    rows = [await scene.row(task) for task in bad]
    assert {(row["state"], row["attempts"], row["error_class"]) for row in rows} == {("scheduled", 2, "Misconfigured")}


async def test_a_probe_is_never_more_than_it_may_be(scene: Scene) -> None:
    place = await Workplace.of(scene, work, client=object())
    bad = await scene.accepted(4 * MOST_PROBES, payload='{"to": "bad"}')
    await ran(place, bad[:OPEN_AFTER])
    await scene.make_due(*bad[OPEN_AFTER:])
    sizes = [len(await probed(place)) for _ in range(8)]
    assert sizes == [1, 2, 4, 8, 16, 32, MOST_PROBES, MOST_PROBES]
