"""Claims, settlements and leases: what workers do, and what ends their leases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from taskflux.store.claims import Claims, LeaseEnded, Settlement
from taskflux.store.database import Database
from taskflux.store.upkeep import Upkeep
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import SOURCE
from tests.integration.store.steps.world import (
    ENDED_LEASE,
    OUTCOMES,
    RESEND,
    WAITS,
    Answer,
    Known,
    Leases,
    Move,
    World,
    unchanged,
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker claims records: new ones, the same ones again, old ones; by default of the first one's type."""

    worker: int
    records: tuple[int, ...]
    type: str | None = None
    suspects: bool = True

    async def bind(self, world: World) -> Move:
        worker = world.workers[self.worker]
        lease, records = worker.worker.id, world.records(self.records)
        versions = dict(records)
        name = self.type or next((world.model[task].type for task, _ in records), RESEND)

        async def run(database: Database) -> Mapping[UUID, Answer]:
            try:
                claims = await of(worker, database).claim(name, versions, suspects=self.suspects)
            except LeaseEnded:
                return dict.fromkeys(versions, ENDED_LEASE)
            return {each.id: (each.version, each.attempt, each.replays, each.expired) for each in claims}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if task not in versions:
                return known, None
            if lease in leases.ended:
                return known, ENDED_LEASE
            if known.state not in WAITS or versions[task] != known.version or known.type != name:
                return known, None
            if known.suspect and not self.suspects:
                return known, None
            claimed = known.moved(State.RUNNING, attempts=known.attempts + 1, owner=lease, late=None)
            return claimed, (claimed.version, claimed.attempts, claimed.replays, claimed.expires)

        def learn(answers: Mapping[UUID, Answer]) -> None:
            claimed = [(task, answer) for task, answer in answers.items() if answer != ENDED_LEASE]
            world.held.extend((self.worker, task, version, replays) for task, (version, _, replays, _) in claimed)

        return Move(run, follows, learn)


@dataclass(frozen=True, slots=True)
class Reclaim:
    """A worker looks for claims of these records whose answer it has lost."""

    worker: int
    records: tuple[int, ...]

    async def bind(self, world: World) -> Move:
        worker = world.workers[self.worker]
        lease, versions = worker.worker.id, {task: version - 1 for _, task, version, _ in world.claims(self.records)}

        async def run(database: Database) -> Mapping[UUID, Answer]:
            claims = await of(worker, database).reclaim(versions)
            return {each.id: (each.version, each.attempt, each.replays, each.expired) for each in claims}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if known.owner != lease or lease in leases.ended or versions.get(task) != known.version - 1:
                return known, None
            return known, (known.version, known.attempts, known.replays, known.expires)

        return Move(run, follows)


def of(worker: Claims, database: Database) -> Claims:
    """The same worker over another connection."""
    return Claims(database, worker.worker, SOURCE)


@dataclass(frozen=True, slots=True)
class Settle:
    """A worker settles claims, whatever has become of them: one after the other, twice, or late."""

    claims: tuple[tuple[int, str], ...]

    async def bind(self, world: World) -> Move:
        places, names = [place for place, _ in self.claims], [name for _, name in self.claims]
        wanted = list(zip(world.claims(places), names, strict=False))
        number = wanted[0][0][0] if wanted else 0
        worker = world.workers[number]
        own = [(task, version, replay, name) for (holder, task, version, replay), name in wanted if holder == number]
        batch = {task: (version, OUTCOMES[name]) for task, version, _, name in own}
        replays = {task: replay for task, _, replay, _ in own}

        async def run(database: Database) -> Mapping[UUID, Answer]:
            settlements = [Settlement(task, version, decision) for task, (version, decision) in batch.items()]
            settled = await of(worker, database).settle_all(settlements)
            return {each.id: (answer.written, answer.late) for each, answer in zip(settlements, settled, strict=True)}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            if task not in batch:
                return known, None
            version, decision = batch[task]
            owned = known.state is State.RUNNING and known.version == version
            ended = decision.state in (State.SUCCEEDED, State.DEAD)
            late = known.late == version and known.state in (*WAITS, State.UNCERTAIN) and ended
            if not owned and not late:
                return known, (False, False)
            settled = known.moved(
                decision.state,
                version=known.version + late,
                attempts=known.attempts + (late and known.state in WAITS) - decision.give_back,
                due=decision.state is State.SCHEDULED and not decision.delay,
                late=None,
                suspect=known.suspect and decision.event is Event.RELEASED and decision.error_class is None,
            )
            if decision.state is State.DEAD:
                settled = replace(settled, buried=settled.version)
            return settled, (True, late)

        def learn(answers: Mapping[UUID, Answer]) -> None:
            for task, (_, decision) in batch.items():
                if decision.state is State.SUCCEEDED and answers[task][0]:
                    world.successes[task, replays[task]] += 1

        return Move(run, follows, learn)


@dataclass(frozen=True, slots=True)
class Stray:
    """A worker settles a task at the version that its claim would have, but nobody has claimed it."""

    worker: int
    task: int

    async def bind(self, world: World) -> Move:
        worker, wanted = world.workers[self.worker], world.task(self.task, *WAITS)

        async def run(database: Database) -> Mapping[UUID, Answer]:
            if wanted is None:
                return {}
            version = world.model[wanted].version + 1
            settlement = Settlement(wanted, version, OUTCOMES["succeeded"])
            (answer,) = await of(worker, database).settle_all([settlement])
            return {wanted: answer.written}

        def follows(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
            return known, False if task == wanted else None

        return Move(run, follows)


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker beats, and takes a new lease if its own was ended."""

    worker: int

    async def bind(self, world: World) -> Move:
        worker = world.workers[self.worker]

        async def run(database: Database) -> Mapping[UUID, Answer]:
            if not await of(worker, database).beat(0):
                await worker.begin()
            return {}

        return Move(run, unchanged)


@dataclass(frozen=True, slots=True)
class EndLease:
    """A lease is ended by its worker, by the supervisor, or by the leader: `silent`, or `overdue`, which a claim that
    runs does not keep from its end."""

    worker: int
    by: str

    async def bind(self, world: World) -> Move:
        worker = world.workers[self.worker]
        lease = worker.worker.id
        beats = {lease: beat} if (beat := (await world.scene.upkeep.beats()).get(lease)) else {}
        origin, lost = worker.worker.origin or "", self.by in ("silent", "overdue")

        async def run(database: Database) -> Mapping[UUID, Answer]:
            if self.by == "worker":
                await of(worker, database).end()
            elif self.by == "supervisor":
                await Upkeep(database).end_leases_of(origin)
            else:
                await Upkeep(database).end_silent(beats, [lease] if self.by == "overdue" else [])
            return {}

        def ended(leases: Leases) -> Leases:
            if lease in leases.ended:
                return leases
            return Leases(leases.ended | {lease}, leases.lost | {lease} if lost else leases.lost)

        return Move(run, unchanged, skips=lost, leases=ended)
