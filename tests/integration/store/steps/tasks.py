"""What people and providers decide about tasks, and locks that somebody holds."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from uuid_utils.compat import uuid7

from taskflux.store.database import Database, Statement
from taskflux.store.dead_letters import DeadLetter, DeadLetters
from taskflux.store.notifications import Receipts
from taskflux.store.publishing import Publishing
from taskflux.store.tasks import Resolution, TaskFilter, Tasks
from taskflux.store.upkeep import Measures
from taskflux.tasks.model import DeliveryReport, DeliveryStatus
from taskflux.tasks.states import State
from tests.integration.store.steps.world import (
    ALL,
    WAITS,
    Answer,
    Known,
    Leases,
    Move,
    World,
    unchanged,
)


@dataclass(frozen=True, slots=True)
class Cancel:
    task: int

    async def bind(self, world: World) -> Move:
        wanted = world.task(self.task, *WAITS)

        async def run(database: Database) -> Mapping[UUID, Answer]:
            return {wanted: True} if wanted and await Tasks(database).cancel(wanted, "default") else {}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if task != wanted or known.state not in WAITS:
                return known, None
            return known.moved(State.CANCELLED, late=None), True

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Bury:
    """The relay publishes the dead letters that wait, and their topic's consumer stores them."""

    async def bind(self, world: World) -> Move:
        async def run(database: Database) -> Mapping[UUID, Answer]:
            publishing = Publishing(database, 0.0)
            dead = await publishing.take_dead(ALL)
            letters = [
                DeadLetter(uuid7(), f"{each.id}:{each.version}", "Permanent", "never", {"topic": "x"}, each.id,
                           each.version)
                for each in dead
            ]  # fmt: skip
            await DeadLetters(database).add(letters)
            await publishing.confirm_dead(dead)
            world.letters += [(each.id, dead.id, dead.version) for each, dead in zip(letters, dead, strict=True)]
            return {each.id: each.version for each in dead}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if known.buried is None:
                return known, None
            return replace(known, buried=None, letters=known.letters | {known.buried}), known.buried

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Replay:
    letter: int

    async def bind(self, world: World) -> Move:
        letter = world.letter(self.letter)

        async def run(database: Database) -> Mapping[UUID, Answer]:
            replayed = await DeadLetters(database).replay("default", letter[0], None) if letter else None
            return {replayed.task_id: True} if replayed else {}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if letter is None or task != letter[1] or known.state is not State.DEAD or known.version != letter[2]:
                return known, None
            if known.version not in known.letters:
                return known, None
            replayed = known.moved(
                State.SCHEDULED, attempts=0, replays=known.replays + 1, expires=False, late=None,
                letters=known.letters - {known.version},
            )  # fmt: skip
            return replayed, True

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Resolve:
    task: int
    resolution: Resolution

    async def bind(self, world: World) -> Move:
        wanted = world.task(self.task, State.UNCERTAIN)

        async def run(database: Database) -> Mapping[UUID, Answer]:
            done = wanted and await Tasks(database).resolve(wanted, "default", self.resolution)
            return {wanted: True} if wanted and done else {}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if task != wanted or known.state is not State.UNCERTAIN:
                return known, None
            if self.resolution is Resolution.RESEND:
                attempts = known.attempts - (known.late is not None)
                return known.moved(State.SCHEDULED, attempts=attempts, expires=False), True
            return known.moved(State(self.resolution.value), late=None), True

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Report:
    """A provider reports on the message of this replay of a task, or of an `earlier` one."""

    task: int
    earlier: int = 0

    async def bind(self, world: World) -> Move:
        wanted = world.task(self.task, State.UNCERTAIN, State.RUNNING)
        if wanted and self.earlier == 0 and world.model[wanted].state in (State.SUCCEEDED, State.CANCELLED):
            wanted = None  # it would change nothing that matters
        replay = max(0, world.model[wanted].replays - self.earlier) if wanted else 0
        world.reports += 1
        number = f"{world.reports:06}"

        async def run(database: Database) -> Mapping[UUID, Answer]:
            if wanted is None:
                return {}
            report = DeliveryReport(wanted, replay, DeliveryStatus.DELIVERED, reported_at=number)
            return {each.task: each.kept for each in await Receipts(database).record([report])}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if task != wanted or known.replays != replay:
                return known, None
            if known.reported is not None and known.reported >= (replay, number):
                return known, False
            reported = replace(known, reported=(replay, number))
            if known.state is State.UNCERTAIN:
                return reported.moved(State.SUCCEEDED, late=None), True
            return replace(reported, early=known.early or known.state in (*WAITS, State.RUNNING)), True

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class ResolveEarly:
    """The leader looks again at what was reported before it was settled."""

    async def bind(self, world: World) -> Move:
        async def run(database: Database) -> Mapping[UUID, Answer]:
            await Receipts(database).resolve_early(ALL)
            return {}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if not known.early or known.state in (*WAITS, State.RUNNING):
                return known, None
            done = replace(known, early=False)
            if known.state is State.UNCERTAIN and known.reported and known.reported[0] == known.replays:
                return done.moved(State.SUCCEEDED, late=None), None
            return done, None

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class List:
    """A person lists the tasks of a state, and maybe of a type."""

    state: State | None
    type: str | None = None

    async def bind(self, world: World) -> Move:
        async def run(database: Database) -> Mapping[UUID, Answer]:
            page = await Tasks(database).page("default", TaskFilter(self.state, self.type), ALL)
            return {row["id"]: (row["state"], row["version"], row["attempts"]) for row in page.rows}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if self.state not in (None, known.state) or self.type not in (None, known.type):
                return known, None
            return known, (known.state, known.version, known.attempts)

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Measure:
    """The leader counts outbox rows, those whose time has come and those that wait, and what runs."""

    async def bind(self, world: World) -> Move:
        async def run(database: Database) -> Mapping[UUID, Answer]:
            depths = (await Measures(database).read()).depths
            found = {(each.type, each.state): each.tasks for each in depths if each.tasks and each.state != "dead-due"}
            known = Counter(
                (each.type, "due" if each.due else each.state.value)
                for each in world.model.values()
                if each.state in (State.SCHEDULED, State.RUNNING)
            )
            assert found == known
            return {}

        return Move(run, unchanged)


@dataclass(frozen=True, slots=True)
class Hold:
    """Somebody locks a row for a moment, and changes nothing."""

    task: int
    table: str = "tasks"
    seconds: float = 0.0

    async def bind(self, world: World) -> Move:
        wanted = world.task(self.task, *WAITS, State.RUNNING)
        statement = {
            "tasks": "SELECT FROM tasks WHERE id = $1 FOR UPDATE",
            "due": "SELECT FROM due WHERE task_id = $1 FOR UPDATE",
            "claims": "SELECT FROM claims WHERE task_id = $1 FOR UPDATE",
        }[self.table]

        async def run(database: Database) -> Mapping[UUID, Answer]:
            await database.fetch(Statement("hold", statement, ("task",)), task=wanted)
            await asyncio.sleep(self.seconds)
            return {}

        return Move(run, unchanged)
