from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

from taskflux.store.publishing import Circuit, Circuits
from taskflux.store.tasks import TaskTypes
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.positions import Positions
from taskflux.tasks.model import TaskType
from taskflux.tasks.policy import RAMP_SECONDS, RAMP_START
from taskflux.upkeep.outflow import NOTHING, Allowance, Outflow
from taskflux.worker.settings import RelaySettings, Settings

MAIL = TaskType("email", "{}", 8, "resend", "smtp")
FREE = TaskType("simulated", "{}", 8, "resend", None)


@dataclass
class World:
    """What the outflow looks at, as plain values: it decides, others do the looking."""

    waiting: int | None = 0
    kafka_away: bool = False
    circuit: Circuit | None = None
    probes: int = 0
    looked: int = 0
    now: float = 1000.0

    async def lag(self, group: str, topic: str) -> int | None:
        self.looked += 1
        if self.kafka_away:
            raise KafkaUnavailable("away")
        return self.waiting

    async def take_probe(self, provider: str) -> bool:
        self.probes -= 1
        return self.probes >= 0

    async def all(self) -> dict[str, Circuit]:
        return {"smtp": self.circuit} if self.circuit else {}


class Types:
    async def all(self) -> dict[str, TaskType]:
        return {"email": MAIL, "simulated": FREE}


async def outflow(world: World) -> Outflow:
    settings = Settings(relay=RelaySettings(max_unclaimed=1000, max_wait=0.5))
    made = Outflow(
        settings, cast("Positions", world), cast("Circuits", world), cast("TaskTypes", Types()), lambda: world.now
    )
    await made.refresh()
    return made


def closed(seconds: float) -> Circuit:
    return Circuit("smtp", False, None, seconds)


async def test_as_many_may_be_published_as_kafka_may_hold_unclaimed() -> None:
    assert await (await outflow(World(waiting=400))).allowance("email") == Allowance(600)


async def test_publishes_since_the_lag_was_read_count_as_lag() -> None:
    flow = await outflow(World(waiting=400))
    await flow.allowance("email")
    flow.released("email", 500)
    assert await flow.allowance("email") == Allowance(100)


async def test_nothing_is_published_while_the_lag_exceeds_the_limit() -> None:
    assert await (await outflow(World(waiting=5000))).allowance("email") == NOTHING


async def test_the_lag_is_not_read_in_every_round() -> None:
    world = World()
    flow = await outflow(world)
    for _ in range(10):
        await flow.allowance("email")
    assert world.looked == 1


@pytest.mark.parametrize("world", [World(waiting=None), World(kafka_away=True)], ids=["no topic", "no Kafka"])
async def test_without_a_topic_nothing_is_published(world: World) -> None:
    assert await (await outflow(world)).allowance("email") == NOTHING


async def test_an_open_circuit_lets_one_probe_through_once_it_is_due() -> None:
    world = World(circuit=Circuit("smtp", True, "away", None), probes=1)
    flow = await outflow(world)
    assert await flow.allowance("email") == Allowance(1, probe=True)
    assert await flow.allowance("email") == NOTHING


async def test_an_open_circuit_does_not_affect_other_providers() -> None:
    world = World(circuit=Circuit("smtp", True, "away", None))
    assert (await (await outflow(world)).allowance("simulated")).tasks == 1000


async def test_after_an_outage_the_rate_rises_slowly() -> None:
    flow = await outflow(World(circuit=closed(0.0)))
    assert await flow.allowance("email") == Allowance(int(RAMP_START * 0.5))
    assert await flow.allowance("email") == NOTHING


async def test_the_rising_rate_does_not_accumulate_while_nothing_is_due() -> None:
    world = World(circuit=closed(0.0))
    flow = await outflow(world)
    await flow.allowance("email")
    world.now += 60
    assert await flow.allowance("email") == Allowance(int(RAMP_START))


async def test_a_circuit_that_closed_long_ago_does_not_limit_publishing() -> None:
    assert await (await outflow(World(circuit=closed(RAMP_SECONDS)))).allowance("email") == Allowance(1000)


async def test_a_type_that_the_relay_does_not_know_is_published_without_a_circuit() -> None:
    assert await (await outflow(World())).allowance("new") == Allowance(1000)
