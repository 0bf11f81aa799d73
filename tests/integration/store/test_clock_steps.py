"""What a step of PostgreSQL's clock, forwards and back, does to what waits by a stored time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from taskflux.store.claims import Settlement
from taskflux.store.database import Database, Row, Statement
from taskflux.store.dead_letters import DeadLetter, DeadLetterFilter, DeadLetters
from taskflux.store.publishing import Circuits
from taskflux.store.upkeep import Checkup, Measures
from taskflux.tasks.decision import Decision
from taskflux.tasks.policy import LAST_PROBE, RAMP_SECONDS, release_rate
from taskflux.tasks.states import Event, State
from taskflux.upkeep.leader import BulkReplays
from tests.integration.store.clock import step
from tests.integration.store.scene import TYPE, Scene, succeeded
from tests.unit.world import Clock

STEPS = pytest.mark.parametrize("seconds", [40, -40, 3600, -3600])
BACK = pytest.mark.parametrize("seconds", [-40, -3600])
A, B = uuid7(), uuid7()


# Leases --------------------------------------------------------------------------------------------------------------


@STEPS
async def test_no_step_of_the_clock_is_a_beat_or_ends_a_lease_or_forgets_a_worker(scene: Scene, seconds: int) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker, 10)
    before = await scene.upkeep.beats()
    await step(scene.direct, seconds)
    assert await scene.upkeep.beats() == before
    assert await scene.upkeep.forget_workers() == 0
    assert (await scene.upkeep.sweep(100, 1000.0)).looked_at == 0
    assert await worker.beat(10)
    assert {await scene.state(claim.id) for claim in claims} == {("running", claims[0].version)}


@BACK
async def test_a_leader_that_was_killed_is_replaced_though_the_clock_was_set_back(scene: Scene, seconds: int) -> None:
    assert await scene.upkeep.lead("relay", A, 10, None)
    await step(scene.direct, seconds)
    assert await scene.upkeep.lead("relay", B, 10, None)


@STEPS
async def test_a_living_leader_renews_its_leadership_after_any_step(scene: Scene, seconds: int) -> None:
    assert await scene.upkeep.lead("relay", A, 10, None)
    await step(scene.direct, seconds)
    assert await scene.upkeep.lead("relay", A, 10, None)
    assert not await scene.upkeep.lead("relay", B, 10, None)


async def test_a_renewal_that_was_waited_for_is_not_taken_for_one_from_before_a_step(scene: Scene) -> None:
    assert await scene.upkeep.lead("relay", A, 10, None)
    async with scene.direct.transaction():
        await scene.sql("SELECT FROM leaders FOR UPDATE")
        waiting = asyncio.create_task(scene.upkeep.lead("relay", B, 10, None))
        await scene.until_blocked()
        await scene.sql("UPDATE leaders SET expires_at = clock_timestamp() + interval '10 s'")
    assert not await waiting


# Circuits ------------------------------------------------------------------------------------------------------------


@BACK
async def test_an_open_circuit_is_probed_though_the_clock_was_set_back(scene: Scene, seconds: int) -> None:
    await scene.circuits.open("smtp", "Unavailable", "down")
    await step(scene.direct, seconds)
    assert await scene.circuits.take_probe("smtp")
    assert not await scene.circuits.take_probe("smtp")
    (row,) = await scene.sql("SELECT extract(epoch FROM probe_at - now())::float8 AS wait FROM circuits")
    assert 0 < row["wait"] <= LAST_PROBE


class Stepped:
    """A database whose clock is ahead by `by` seconds from now on, when circuits are read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.by = 0.0

    async def fetch(self, statement: Statement, /, **arguments: object) -> list[Row]:
        rows = await self._database.fetch(statement, **arguments)
        return [{**row, "closed_for": row["closed_for"] + self.by} for row in rows]


@STEPS
async def test_the_rising_rate_after_an_outage_takes_its_seconds_whatever_the_clock_does(
    scene: Scene, seconds: int
) -> None:
    await scene.circuits.open("smtp", "Unavailable", "down")
    await scene.circuits.close("smtp")
    clock, database = Clock(), Stepped(scene.database)
    circuits = Circuits(cast("Database", database), clock)
    before = (await circuits.all())["smtp"].closed_for
    database.by = seconds
    assert (await circuits.all())["smtp"].closed_for == before
    clock.now += RAMP_SECONDS - 1
    assert release_rate((await circuits.all())["smtp"].closed_for) is not None
    clock.now += 1
    assert release_rate((await circuits.all())["smtp"].closed_for) is None


@BACK
async def test_a_relay_that_starts_after_the_clock_was_set_back_lets_the_rate_rise_once(
    scene: Scene, seconds: int
) -> None:
    await scene.circuits.open("smtp", "Unavailable", "down")
    await scene.circuits.close("smtp")
    await step(scene.direct, seconds)
    clock = Clock()
    circuits = Circuits(scene.database, clock)
    assert (await circuits.all())["smtp"].closed_for == 0
    clock.now += RAMP_SECONDS
    assert release_rate((await circuits.all())["smtp"].closed_for) is None


async def test_another_outage_lets_the_rate_rise_again(scene: Scene) -> None:
    clock = Clock()
    circuits = Circuits(scene.database, clock)
    for _ in range(2):
        await circuits.open("smtp", "Unavailable", "down")
        await circuits.close("smtp")
        assert release_rate((await circuits.all())["smtp"].closed_for) is not None
        clock.now += RAMP_SECONDS
        assert release_rate((await circuits.all())["smtp"].closed_for) is None


# Bulk replays --------------------------------------------------------------------------------------------------------

EMAILS = DeadLetterFilter(type=TYPE)
DIED = Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="no such address")


async def die(scene: Scene, tasks: Sequence[UUID], version: int = 1) -> None:
    """Claim these at `version` and let them die; their dead letters are stored."""
    worker = await scene.worker()
    claims = await worker.claim(TYPE, dict.fromkeys(tasks, version))
    assert len(claims) == len(tasks)
    await worker.settle_all([Settlement(claim.id, claim.version, DIED) for claim in claims])
    await scene.dead_letters.add(
        [
            DeadLetter(
                uuid7(), f"task:{task}:{version}", "Permanent", "", {"topic": "tasks.dlq"}, task, version + 1, TYPE
            )
            for task in tasks
        ]
    )


async def finished(replays: DeadLetters, bulk: UUID) -> Row:
    """The bulk replay, once it has ended."""
    async with asyncio.timeout(20):
        while True:
            await BulkReplays(replays).tick()
            row = await replays.get_bulk("default", bulk)
            if row is not None and row["status"] == "finished":
                return row


@pytest.mark.parametrize(("seconds", "at_once"), [(40, 0), (-40, 1), (3600, 1), (-3600, 1)])
async def test_a_bulk_replay_goes_on_after_any_step_at_its_rate(scene: Scene, seconds: int, at_once: int) -> None:
    """A dead letter each hundred seconds, so that those that the test itself takes count for nothing."""
    await die(scene, await scene.accepted(5))
    replays, bulk = DeadLetters(scene.database), uuid7()
    await replays.start_bulk("default", bulk, EMAILS, 0.01)
    await step(scene.direct, seconds)
    seen = []
    for _ in range(6 - at_once):
        await BulkReplays(replays).tick()
        seen += await scene.sql("SELECT replayed, status FROM bulk_replays WHERE id = $1", bulk)
        await step(scene.direct, 100)
    assert [row["replayed"] for row in seen] == list(range(at_once, 6))
    assert [row["status"] for row in seen] == ["running"] * (5 - at_once) + ["finished"]


async def test_a_bulk_replay_skips_dead_letters_written_after_the_clock_was_set_back(scene: Scene) -> None:
    """By its time alone it stood there when the replay was asked for: a task that dies again would go round."""
    tasks = await scene.accepted(3)
    await die(scene, tasks[:2])
    await scene.sql("UPDATE dead_letters SET created_at = now() - interval '1 day'")
    replays, bulk = DeadLetters(scene.database), uuid7()
    await replays.start_bulk("default", bulk, EMAILS, 1000.0)
    await step(scene.direct, -3600)
    await die(scene, tasks[2:])
    row = await finished(replays, bulk)
    assert (row["matched"], row["replayed"], row["skipped"]) == (2, 2, 0)
    assert (await scene.state(tasks[2]))[0] == "dead"


# Ages ----------------------------------------------------------------------------------------------------------------


@BACK
async def test_no_age_is_negative(scene: Scene, seconds: int) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    (due,) = await scene.accepted()
    await scene.circuits.open("smtp", "Unavailable", "down")
    await step(scene.direct, seconds)
    assert (await scene.settle(worker, claim, succeeded(None))).age == 0
    (claimed,) = await worker.claim(TYPE, {due: 1})
    assert claimed.waited == 0
    assert [circuit.seconds for circuit in (await Measures(scene.database).read()).circuits] == [0]
    assert [row["seconds"] for row in await Checkup(scene.database).open_circuits()] == [0]
