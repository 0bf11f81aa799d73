"""What the leader does: it frees claims, and publishes again what Kafka lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from taskflux.store.database import Database
from taskflux.store.tasks import FIRST_ID
from taskflux.store.upkeep import Published, Upkeep
from taskflux.tasks.states import State
from tests.integration.store.scene import LOG
from tests.integration.store.steps.world import (
    ALL,
    HOLD,
    RATE,
    Answer,
    Known,
    Leases,
    Move,
    Reading,
    Recalling,
    World,
    at,
)


@dataclass(frozen=True, slots=True)
class LookForLapsed:
    """The leader reads which claims have no lease any more."""

    async def bind(self, world: World) -> Move:
        async def run(database: Database) -> Mapping[UUID, Answer]:
            reading = Reading(database, "lapsed")
            await Upkeep(reading).sweep(ALL, RATE)
            world.read["lapsed", 0] = rows = reading.rows or []
            return {row["task_id"]: (row["version"], row["worker"], row["lost"]) for row in rows}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if known.owner is None or known.owner not in leases.ended:
                return known, None
            return known, (known.version, known.owner, known.owner in leases.lost)

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Sweep:
    """The leader frees the claims that it has read."""

    async def bind(self, world: World) -> Move:
        if ("lapsed", 0) not in world.read:
            await (await LookForLapsed().bind(world)).run(world.database)
        rows = world.read.pop(("lapsed", 0))
        lapsed = {row["task_id"]: row for row in rows}

        async def run(database: Database) -> Mapping[UUID, Answer]:
            await Upkeep(Recalling(database, "lapsed", rows)).sweep(ALL, RATE, losses_alone=1000)
            return {}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            row = lapsed.get(task)
            if known.state is not State.RUNNING or row is None:
                return known, None
            if (row["version"], row["worker"]) != (known.version, known.owner):
                return known, None
            late = known.version
            if known.type == HOLD:
                return known.moved(State.UNCERTAIN, late=late), None
            suspect = known.suspect or row["lost"]
            return known.moved(State.SCHEDULED, attempts=known.attempts - 1, late=late, suspect=suspect), None

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Audit:
    """The leader reads which records Kafka has to deliver, and where they are."""

    async def bind(self, world: World) -> Move:
        async def run(database: Database) -> Mapping[UUID, Answer]:
            _, page = await Upkeep(database).audit_page(FIRST_ID, ALL)
            world.read["published", 0] = page
            return {each.id: (each.type, each.version, each.log, each.partition, each.offset) for each in page}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            queued = known.state is State.QUEUED
            return known, (known.type, known.version, LOG, 0, known.version) if queued else None

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Requeue:
    """The leader publishes again those that Kafka's positions say are `lost`, of what it has read."""

    lost: tuple[int, ...]

    async def bind(self, world: World) -> Move:
        if ("published", 0) not in world.read:
            await (await Audit().bind(world)).run(world.database)
        page: Sequence[Published] = world.read.pop(("published", 0))
        lost = {each.id: each for each in at(page, self.lost, lambda _: True)}

        async def run(database: Database) -> Mapping[UUID, Answer]:
            await Upkeep(database).requeue(list(lost.values()), RATE)
            return {}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if known.state is not State.QUEUED or task not in lost or lost[task].version != known.version:
                return known, None
            return known.moved(State.SCHEDULED), None

        return Move(run, follows)
