from __future__ import annotations

import asyncio

import pytest

from taskflux.tasks.policy import FIRST_PROBE, LAST_PROBE
from tests.integration.store.scene import Scene


async def probe_due(scene: Scene) -> None:
    await scene.sql("UPDATE circuits SET probe_at = now() - interval '1 millisecond'")


async def wait(scene: Scene) -> float:
    (row,) = await scene.sql("SELECT extract(epoch FROM probe_at - now())::float8 AS wait FROM circuits")
    return float(row["wait"])


async def test_of_several_that_see_a_provider_fail_one_opens_its_circuit(scene: Scene) -> None:
    opened = await asyncio.gather(*(scene.circuits.open("smtp", "Unavailable", f"says {n}") for n in range(6)))
    assert sorted(opened) == [False] * 5 + [True]
    circuit = (await scene.circuits.all())["smtp"]
    assert circuit.open
    assert circuit.closed_for is None


async def test_of_several_that_see_it_work_again_one_closes_it(scene: Scene) -> None:
    await scene.circuits.open("smtp", "Unavailable", "away")
    closed = await asyncio.gather(*(scene.circuits.close("smtp") for _ in range(6)))
    assert sorted(closed) == [False] * 5 + [True]
    circuit = (await scene.circuits.all())["smtp"]
    assert not circuit.open
    assert circuit.closed_for is not None
    assert 0 <= circuit.closed_for < 10


async def test_a_circuit_that_never_opened_is_not_closed(scene: Scene) -> None:
    assert not await scene.circuits.close("smtp")
    assert await scene.circuits.all() == {}


async def test_it_opens_again_as_if_for_the_first_time(scene: Scene) -> None:
    await scene.circuits.open("smtp", "Unavailable", "away")
    for _ in range(5):
        await probe_due(scene)
        await scene.circuits.take_probe("smtp")
    await scene.circuits.close("smtp")
    assert await scene.circuits.open("smtp", "Misconfigured", "wrong password")
    assert (await scene.circuits.all())["smtp"].reason == "wrong password"
    assert await wait(scene) <= FIRST_PROBE


async def test_one_at_a_time_may_probe(scene: Scene) -> None:
    await scene.circuits.open("smtp", "Unavailable", "away")
    assert not await scene.circuits.take_probe("smtp")
    await probe_due(scene)
    rights = await asyncio.gather(*(scene.circuits.take_probe("smtp") for _ in range(6)))
    assert sorted(rights) == [False] * 5 + [True]


async def test_the_wait_between_probes_doubles_up_to_the_longest(scene: Scene) -> None:
    await scene.circuits.open("smtp", "Unavailable", "away")
    for delay in (2.0, 4.0, 8.0, LAST_PROBE, LAST_PROBE, LAST_PROBE):
        await probe_due(scene)
        assert await scene.circuits.take_probe("smtp")
        assert await wait(scene) == pytest.approx(delay, abs=0.5)
    assert await wait(scene) == pytest.approx(LAST_PROBE, abs=0.5)


async def test_a_closed_circuit_gives_no_right_to_probe(scene: Scene) -> None:
    await scene.circuits.open("smtp", "Unavailable", "away")
    await scene.circuits.close("smtp")
    await probe_due(scene)
    assert not await scene.circuits.take_probe("smtp")


async def test_a_reason_that_postgresql_refuses_still_opens_it(scene: Scene) -> None:
    assert await scene.circuits.open("smtp", "Unavailable", "the server said \x00 and \ud800")
    assert (await scene.circuits.all())["smtp"].reason == "the server said \ufffd and ?"
