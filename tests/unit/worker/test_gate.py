from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from taskflux.store.accelerator import Accelerator
from taskflux.store.publishing import Circuits
from taskflux.store.settings import RedisSettings
from taskflux.tasks.errors import Misconfigured, ProviderError, Unavailable
from taskflux.tasks.policy import OPEN_AFTER, RAMP_SECONDS
from taskflux.worker.circuits import REMEMBERED, CircuitWatch, Gate, Limiter
from tests.integration.store.scene import Scene
from tests.unit.world import Clock, WatchedDatabase

PROVIDER = "smtp"
DOWN = Unavailable("it is down")
NOW = Clock().now


class Client:
    """A provider's client that can check; `error` is what the check raises."""

    def __init__(self, error: ProviderError | None = None) -> None:
        self.error = error
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        if self.error is not None:
            raise self.error


class Turns(Limiter):
    """Counts the turns that were taken."""

    def __init__(self) -> None:
        super().__init__(PROVIDER, 1000.0, Accelerator(RedisSettings()))
        self.taken = 0

    async def turn(self) -> None:
        self.taken += 1


def a_gate(scene: Scene, client: object | None = None, limiter: Limiter | None = None) -> Gate:
    clock = Clock()
    return Gate(CircuitWatch(Circuits(scene.database), clock), PROVIDER, client, limiter, clock)


async def failures(gate: Gate, number: int, error: ProviderError = DOWN) -> None:
    for task in range(number):
        await gate.failed(UUID(int=task), error, NOW)


async def opened(scene: Scene, client: object | None = None, limiter: Limiter | None = None) -> Gate:
    gate = a_gate(scene, client, limiter)
    await failures(gate, OPEN_AFTER)
    assert gate.open
    return gate


async def is_open(scene: Scene) -> bool:
    return (await scene.circuits.all())[PROVIDER].open


async def test_failures_of_several_tasks_open_the_circuit_for_all(scene: Scene) -> None:
    gate = a_gate(scene)
    await failures(gate, OPEN_AFTER - 1)
    assert not gate.open
    await failures(gate, OPEN_AFTER, Misconfigured("wrong password"))
    assert (gate.open, OPEN_AFTER) == (True, 3)
    ((error_class,),) = await scene.sql("SELECT error_class FROM circuits WHERE provider = $1", PROVIDER)
    assert (await is_open(scene), error_class) == (True, "Misconfigured")


async def test_one_task_that_fails_time_and_again_opens_nothing(scene: Scene) -> None:
    gate = a_gate(scene)
    for _ in range(10 * OPEN_AFTER):
        await gate.failed(UUID(int=1), DOWN, NOW)
    assert not gate.open


async def test_a_success_in_between_begins_the_count_again(scene: Scene) -> None:
    gate = a_gate(scene)
    await failures(gate, OPEN_AFTER - 1)
    await gate.served(GOOD)
    for number in range(OPEN_AFTER - 1):
        await gate.failed(UUID(int=100 + number), DOWN, NOW)
    assert not gate.open


async def test_an_open_circuit_lets_nothing_through_and_takes_no_turn(scene: Scene) -> None:
    turns = Turns()
    gate = await opened(scene, limiter=turns)
    assert await gate.refusal(probe=False) == "the provider's circuit is open"
    assert turns.taken == 0


async def test_what_passes_has_taken_its_turn(scene: Scene) -> None:
    turns = Turns()
    assert await a_gate(scene, limiter=turns).refusal(probe=False) is None
    assert turns.taken == 1


async def test_a_probe_closes_the_circuit_once_the_provider_s_own_check_succeeds(scene: Scene) -> None:
    client = Client()
    gate = await opened(scene, client)
    assert await gate.refusal(probe=True) is None
    assert (client.checks, gate.open, await is_open(scene)) == (1, False, False)


async def test_a_probe_whose_check_fails_is_refused_and_the_circuit_stays_open(scene: Scene) -> None:
    gate = await opened(scene, Client(Unavailable("still down")))
    assert await gate.refusal(probe=True) == "the provider was probed: still down"
    assert (gate.open, await is_open(scene)) == (True, True)


async def test_where_nothing_can_be_checked_the_probe_itself_goes_through(scene: Scene) -> None:
    gate = await opened(scene, object())
    assert await gate.refusal(probe=True) is None
    assert gate.open
    await gate.served(GOOD)
    assert (gate.open, await is_open(scene)) == (False, False)


async def test_without_an_open_circuit_a_probe_checks_nothing(scene: Scene) -> None:
    client = Client()
    assert await a_gate(scene, client).refusal(probe=True) is None
    assert client.checks == 0


async def test_a_circuit_that_another_worker_opened_is_known_after_a_refresh(scene: Scene) -> None:
    gate, watch = a_gate(scene), CircuitWatch(Circuits(scene.database))
    gate = Gate(watch, PROVIDER)
    await opened(scene)
    assert not gate.open
    await watch.refresh()
    assert gate.open


async def test_while_postgresql_is_unreachable_what_was_known_stays(scene: Scene) -> None:
    gate = await opened(scene, Client())
    assert isinstance(scene.database, WatchedDatabase)
    scene.database.unreachable.add("close_circuit")
    await gate.served(GOOD)
    assert gate.open
    scene.database.unreachable.clear()
    await gate.served(GOOD)  # the next success says it again
    assert not gate.open


async def test_a_circuit_that_could_not_be_opened_is_opened_by_the_next_failure(scene: Scene) -> None:
    gate = a_gate(scene)
    assert isinstance(scene.database, WatchedDatabase)
    scene.database.unreachable.add("open_circuit")
    await failures(gate, OPEN_AFTER)
    assert not gate.open
    scene.database.unreachable.clear()
    await gate.failed(UUID(int=99), DOWN, NOW)
    assert gate.open


async def test_a_handler_without_a_provider_has_no_circuit(scene: Scene) -> None:
    gate = Gate(CircuitWatch(Circuits(scene.database)))
    await failures(gate, 10 * OPEN_AFTER)
    assert not gate.open
    assert await gate.refusal(probe=False) is None


GOOD = UUID(int=10**9)
REFUSED = Misconfigured("your template is wrong")


async def test_a_task_that_fails_while_its_provider_serves_others_opens_nothing(scene: Scene) -> None:
    clock = Clock()
    gate = Gate(CircuitWatch(Circuits(scene.database), clock), PROVIDER, clock=clock)
    for task in range(10 * OPEN_AFTER):
        assert not await gate.failed(UUID(int=task), REFUSED, clock.now)
        clock.now += 5
        await gate.served(GOOD)  # after its failure, and long before the next one began
        clock.now += 5
        assert await gate.failed(UUID(int=task), REFUSED, clock.now)
    assert not gate.open


async def test_tasks_that_failed_while_others_were_served_do_not_open_the_circuit_together(scene: Scene) -> None:
    clock = Clock()
    gate = Gate(CircuitWatch(Circuits(scene.database), clock), PROVIDER, clock=clock)
    for at, task in enumerate([*range(OPEN_AFTER), *range(OPEN_AFTER)]):
        if at <= OPEN_AFTER:
            await gate.served(GOOD)
        clock.now += 1
        await gate.failed(UUID(int=task), REFUSED, clock.now)
        clock.now += 1
    assert not gate.open


async def test_a_success_before_the_last_failure_of_a_task_says_nothing(scene: Scene) -> None:
    clock = Clock()
    gate = Gate(CircuitWatch(Circuits(scene.database), clock), PROVIDER, clock=clock)
    await gate.served(GOOD)
    clock.now += 1
    assert not await gate.failed(UUID(int=1), REFUSED, clock.now)
    clock.now += 1
    assert not await gate.failed(UUID(int=1), REFUSED, clock.now)


@pytest.mark.parametrize(("checked", "counts"), [(False, True), (True, False)])
async def test_another_worker_s_success_counts_once_it_closed_the_circuit_and_its_check_does_not(
    scene: Scene, checked: bool, counts: bool
) -> None:
    clock = Clock()
    watch, others = (CircuitWatch(Circuits(scene.database), clock) for _ in range(2))
    gate, other = Gate(watch, PROVIDER, clock=clock), Gate(others, PROVIDER, Client(), clock=clock)
    await failures(gate, OPEN_AFTER)
    await others.refresh()
    if checked:
        assert await other.refusal(probe=True) is None
    else:
        await other.served(GOOD)
    assert not await is_open(scene)
    clock.now += 5
    await watch.refresh()
    assert await gate.failed(UUID(int=0), REFUSED, clock.now) is counts


async def test_a_check_that_succeeds_does_not_count_as_service(scene: Scene) -> None:
    clock = Clock()
    gate = Gate(CircuitWatch(Circuits(scene.database), clock), PROVIDER, Client(), clock=clock)
    await failures(gate, OPEN_AFTER)
    clock.now += 5
    assert await gate.refusal(probe=True) is None
    assert not gate.open
    assert not await gate.failed(UUID(int=0), REFUSED, clock.now)


async def test_a_refused_probe_widens_the_next_one_and_an_unanswered_one_narrows_it(scene: Scene) -> None:
    gate = await opened(scene, object())

    async def breadth() -> int:
        await scene.sql("UPDATE circuits SET probe_at = now() - interval '1 millisecond'")
        return await scene.circuits.take_probe(PROVIDER)

    found = [await breadth()]
    for number in range(8):
        for task in range(found[-1]):  # each of them says the same
            await gate.failed(UUID(int=1000 * (number + 1) + task), REFUSED, NOW, probe=True)
        found.append(await breadth())
    assert found == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    ((error_class,),) = await scene.sql("SELECT error_class FROM circuits WHERE provider = $1", PROVIDER)
    assert error_class == "Misconfigured"
    await gate.failed(UUID(int=1), REFUSED, NOW)  # no probe: it was under way
    await gate.failed(UUID(int=2), DOWN, NOW, probe=True)
    assert await breadth() == 1


async def test_what_a_gate_remembers_of_failures_is_bounded(scene: Scene) -> None:
    clock = Clock()
    gate = Gate(CircuitWatch(Circuits(scene.database), clock), PROVIDER, clock=clock)
    await gate.served(GOOD)
    await asyncio.gather(*(gate.failed(UUID(int=task), REFUSED, clock.now - 1) for task in range(REMEMBERED + 1)))
    clock.now += 5
    await gate.served(GOOD)
    assert not await gate.failed(UUID(int=0), REFUSED, clock.now)  # as if it had never failed
    assert await gate.failed(UUID(int=9), REFUSED, clock.now)


@pytest.mark.parametrize(("closed_for", "flows"), [(0.0, False), (RAMP_SECONDS + 1, True)])
async def test_work_flows_freely_again_some_time_after_the_circuit_closed(
    scene: Scene, closed_for: float, flows: bool
) -> None:
    gate = await opened(scene)
    watch = CircuitWatch(Circuits(scene.database))
    await watch.refresh()
    assert not watch.flowing(PROVIDER)
    await gate.served(GOOD)
    await scene.sql("UPDATE circuits SET closed_at = now() - make_interval(secs => $1)", closed_for)
    await watch.refresh()
    assert watch.flowing(PROVIDER) is flows
    assert watch.flowing("another")
    assert watch.flowing(None)
