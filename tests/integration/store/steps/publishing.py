"""Accepting and publishing: what ingest and the relays do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from taskflux.store.database import Database
from taskflux.store.publishing import Confirmation, Publishing
from taskflux.store.tasks import Tasks
from taskflux.tasks.states import State
from tests.integration.store.scene import LOG, submission
from tests.integration.store.steps.world import (
    ALL,
    LATER,
    RESEND,
    Answer,
    Known,
    Leases,
    Move,
    Reading,
    Recalling,
    World,
    unchanged,
)


@dataclass(frozen=True, slots=True)
class Insert:
    """Ingest accepts tasks: due now and published by itself (`promised`), left to the relay, or due later."""

    types: tuple[str, ...]
    when: str
    expires: bool = False

    async def bind(self, world: World) -> Move:
        expires = datetime(2020, 1, 1, tzinfo=UTC) if self.expires else None
        delay, grace = LATER * (self.when == "later"), LATER * (self.when == "promised")
        new = [submission(type=name, delay=delay, expires_at=expires, max_attempts=1000) for name in self.types]

        async def run(database: Database) -> Mapping[UUID, Answer]:
            await Tasks(database).insert(new, grace)
            for each in new:
                world.tasks.append(each.id)
                world.model[each.id] = Known(each.type, due=self.when == "left", expires=self.expires)
                if self.when == "promised":
                    world.log.append((each.id, 1))
            return {}

        return Move(run, unchanged)


@dataclass(frozen=True, slots=True)
class LookForDue:
    """A relay reads which rows are due, and does no more yet."""

    relay: int
    type: str = RESEND

    async def bind(self, world: World) -> Move:
        async def run(database: Database) -> Mapping[UUID, Answer]:
            reading = Reading(database, "due_now")
            await Publishing(reading, 0.0).take(self.type, ALL)
            world.read["due", self.relay] = rows = reading.rows or []
            return {
                row["task_id"]: row["version"] for row in rows if row["version"] >= world.model[row["task_id"]].version
            }

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            return known, known.version if known.due and known.type == self.type else None

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Promise:
    """A relay takes what it has read, to publish it. Its records stand in the log, wherever it may crash after that:
    one that was never produced is one that nobody claims."""

    relay: int
    type: str = RESEND
    grace: float = 0.0

    async def bind(self, world: World) -> Move:
        if ("due", self.relay) not in world.read:
            await (await LookForDue(self.relay, self.type).bind(world)).run(world.database)
        rows = world.read.pop(("due", self.relay))
        read = {row["task_id"]: row["version"] for row in rows}

        async def run(database: Database) -> Mapping[UUID, Answer]:
            taken = await Publishing(Recalling(database, "due_now", rows), self.grace).take(self.type, ALL)
            return {each.id: each.version for each in taken}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if known.state is not State.SCHEDULED or read.get(task) != known.version:
                return known, None
            return replace(known, version=known.version + 1, due=not self.grace), known.version + 1

        def learn(answers: Mapping[UUID, Answer]) -> None:
            world.log.extend(answers.items())

        return Move(run, follows, learn, skips=True)


@dataclass(frozen=True, slots=True)
class Confirm:
    """Kafka has these records: now, late, or of versions that are long past."""

    records: tuple[int, ...]

    async def bind(self, world: World) -> Move:
        records = world.records(self.records)
        newest = dict(sorted(records))

        async def run(database: Database) -> Mapping[UUID, Answer]:
            # No grace: it would try again after a deadlock, and nobody would hear of it.
            places = [Confirmation(task, version, LOG, 0, version) for task, version in records]
            await Publishing(database, 0.0).confirm(places)
            return {}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if known.state is not State.SCHEDULED or newest.get(task) != known.version:
                return known, None
            return replace(known, state=State.QUEUED, due=False), None

        return Move(run, follows, skips=True)


@dataclass(frozen=True, slots=True)
class Wait:
    """Whatever waits for its time, or for a grace to end, is due."""

    async def bind(self, world: World) -> Move:
        async def run(database: Database) -> Mapping[UUID, Answer]:
            await world.scene.sql(
                "UPDATE due SET publish_at = now() - interval '1 second'"
                " WHERE NOT dead AND publish_at < now() + interval '1 year'"
            )
            return {}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            return replace(known, due=known.state is State.SCHEDULED), None

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class LookForExpired:
    """A relay reads what has expired."""

    relay: int

    async def bind(self, world: World) -> Move:
        async def run(database: Database) -> Mapping[UUID, Answer]:
            reading = Reading(database, "expired_now")
            await Publishing(reading, 0.0).expire(ALL)
            world.read["expired", self.relay] = rows = reading.rows or []
            return {
                row["task_id"]: row["version"] for row in rows if row["version"] >= world.model[row["task_id"]].version
            }

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            return known, known.version if known.expires and known.state is State.SCHEDULED else None

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Expire:
    """A relay makes dead what it has read."""

    relay: int

    async def bind(self, world: World) -> Move:
        if ("expired", self.relay) not in world.read:
            await (await LookForExpired(self.relay).bind(world)).run(world.database)
        rows = world.read.pop(("expired", self.relay))
        read = {row["task_id"]: row["version"] for row in rows}

        async def run(database: Database) -> Mapping[UUID, Answer]:
            await Publishing(Recalling(database, "expired_now", rows), 0.0).expire(ALL)
            return {}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if known.state is not State.SCHEDULED or read.get(task) != known.version:
                return known, None
            return known.moved(State.DEAD, late=None), None

        return Move(run, follows, skips=True)
