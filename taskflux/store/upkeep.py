"""The statements of the elected leader: expired leases, records that Kafka lost, partitions, old keys, measurements."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple
from uuid import UUID

from uuid_utils.compat import uuid7

from taskflux.store.database import Database, Row, statements
from taskflux.tasks.decision import LOSSES_ALONE, Held, Verdict, judge

SQL: Final = statements("upkeep")


@dataclass(frozen=True, slots=True)
class Published:
    """A queued task, and where its record was confirmed."""

    id: UUID
    type: str
    version: int
    log: UUID | None
    partition: int | None
    offset: int | None


class Beat(NamedTuple):
    """A worker's beat: its number, and when the PostgreSQL that counts it was started. Compared, never subtracted."""

    number: int
    server: datetime


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep found: `looked_at` claims without a lease, and their number by type and new state."""

    looked_at: int
    tasks: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Upkeep:
    """The statements of the leader."""

    database: Database

    async def lead(self, name: str, holder: UUID, seconds: float, origin: str | None) -> bool:
        """Take or keep the leadership for `seconds`; whether the holder has it now."""
        row = await self.database.fetchrow(SQL["lead"], name=name, holder=holder, seconds=seconds, origin=origin)
        return row is not None

    async def resign(self, name: str, holder: UUID) -> None:
        """Let another take over at once."""
        await self.database.fetch(SQL["resign"], name=name, holder=holder)

    async def beats(self) -> Mapping[UUID, Beat]:
        """The last beat of every worker whose lease has not ended."""
        return {row["id"]: Beat(row["beat"], row["server"]) for row in await self.database.fetch(SQL["beats"])}

    async def end_silent(self, silent: Mapping[UUID, Beat], overdue: Collection[UUID]) -> Sequence[Row]:
        """End the leases of these workers, if they have not beaten since; label and in_flight of each.

        A worker whose claim is running is left for the next time, unless it is one of `overdue`.
        """
        if not silent:
            return []
        ids = sorted(silent)
        return await self.database.fetch(
            SQL["end_silent"], ids=ids, beats=[silent[worker].number for worker in ids], overdue=list(overdue)
        )

    async def sweep(self, limit: int, rate: float, start: float = 0.0, *, losses_alone: int = LOSSES_ALONE) -> Swept:
        """Free the claims whose lease was ended, one worker after the other until `limit` is reached.

        They are due again at `rate` a second, the first in `start` seconds, or held, as their type's policy says. The
        tasks of a lost worker run again as suspects; one that has ended `losses_alone` workers by itself is dead.
        """
        lapsed = await self.database.fetch(SQL["lapsed"], limit=limit)
        if not lapsed:
            return Swept(0, {})
        verdicts = _verdicts(lapsed, losses_alone)
        batch = sorted(lapsed, key=itemgetter("task_id"))
        ids = [claim["task_id"] for claim in batch]
        decisions = [verdicts[task].decision for task in ids]
        rows = await self.database.fetch(
            SQL["sweep"],
            ids=ids,
            versions=[claim["version"] for claim in batch],
            workers=[claim["worker"] for claim in batch],
            states=[decision.state for decision in decisions],
            events=[decision.event for decision in decisions],
            given_back=[int(decision.give_back) for decision in decisions],
            error_classes=[decision.error_class for decision in decisions],
            reasons=[decision.reason for decision in decisions],
            notes=[verdicts[task].note for task in ids],
            groups=[verdicts[task].group for task in ids],
            alone=[verdicts[task].alone for task in ids],
            losses=[int(verdicts[task].loss) for task in ids],
            least=ids[0],
            greatest=ids[-1],
            rate=rate,
            start=start,
        )
        return Swept(len(lapsed), {(row["type"], row["state"]): row["tasks"] for row in rows})

    async def end_leases_of(self, origin: str, pid: int | None = None) -> int:
        """End the leases of a supervisor's former run, or of one child that died; returns how many."""
        return len(await self.database.fetch(SQL["end_leases_of"], origin=origin, pid=pid))

    async def forget_workers(self) -> int:
        """Delete workers whose lease was ended and that hold nothing."""
        return len(await self.database.fetch(SQL["forget_workers"]))

    async def clear_suspects(self) -> int:
        """Forget suspects whose task has ended; how many."""
        cleared = [row["task_id"] for row in await self.database.fetch(SQL["cleared"])]
        return len(await self.database.fetch(SQL["clear"], ids=cleared)) if cleared else 0

    async def audit_page(self, after: UUID, limit: int) -> tuple[UUID | None, Sequence[Published]]:
        """The queued ones among the next `limit` tasks, and where the next page begins (None: there is none)."""
        rows = await self.database.fetch(SQL["audit_page"], after=after, limit=limit)
        if not rows:
            return None, []
        found = [
            Published(
                row["id"],
                row["type"],
                row["version"],
                row["published_log"],
                row["published_partition"],
                row["published_offset"],
            )
            for row in rows
            if row["id"] is not None
        ]
        return rows[0]["last"], found

    async def requeue(self, tasks: Sequence[Published], rate: float, start: float = 0.0) -> Mapping[str, int]:
        """Make these due again if they are still queued at their version; how many by type.

        They are due at `rate` a second, the first in `start` seconds.
        """
        if not tasks:
            return {}
        batch = sorted(tasks, key=lambda task: task.id)
        ids = [task.id for task in batch]
        versions = [task.version for task in batch]
        rows = await self.database.fetch(
            SQL["requeue"], ids=ids, versions=versions, least=ids[0], greatest=ids[-1], rate=rate, start=start
        )
        return {row["type"]: row["tasks"] for row in rows}

    async def make_partitions(self, weeks_ahead: int) -> int:
        """Make the partitions of this week and the next ones; how many were missing."""
        row = await self.database.fetchrow(SQL["make_partitions"], weeks=weeks_ahead)
        return int(row[0]) if row else 0

    async def forget_keys(self, limit: int) -> int:
        """Delete idempotency keys that have expired."""
        return len(await self.database.fetch(SQL["forget_keys"], limit=limit))


def _verdicts(lapsed: Sequence[Row], losses_alone: int) -> Mapping[UUID, Verdict]:
    """The verdict on each of these claims, which are all that their workers held."""
    verdicts: dict[UUID, Verdict] = {}
    for _, claims in groupby(sorted(lapsed, key=itemgetter("worker")), key=itemgetter("worker")):
        of_worker = list(claims)
        held = [Held(row["task_id"], row["hold"], row["suspect"], row["begun"], row["alone"]) for row in of_worker]
        verdicts |= judge(held, lost=of_worker[0]["lost"], losses_alone=losses_alone, new_group=uuid7)
    return verdicts


@dataclass(frozen=True, slots=True)
class Depth:
    """How many tasks of a type are in a state; where that is `due`, how long the oldest has been (seconds)."""

    type: str
    state: str
    tasks: int
    oldest: float | None


@dataclass(frozen=True, slots=True)
class CircuitState:
    """A provider's circuit, and for how long it has been open (seconds) since it last opened."""

    provider: str
    open: bool
    error_class: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All figures, each as of one moment; `types` are the registered ones with their providers."""

    depths: Sequence[Depth]
    parked: Mapping[tuple[str, str], int]
    workers: Mapping[str, int]
    dead_letters: Mapping[str, int]
    circuits: Sequence[CircuitState]
    types: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Measures:
    """Reads the narrow tables, so the cost grows with the backlog, not with the history."""

    database: Database

    async def read(self) -> Measured:
        """Measure once; a worker counts until its lease is ended. Raises StoreError."""
        fetch = self.database.fetch
        depths = [Depth(*row) for row in await fetch(SQL["measure_tasks"])]
        parked = {(row["type"], row["state"]): row["tasks"] for row in await fetch(SQL["measure_parked"])}
        workers = {row["type"]: row["workers"] for row in await fetch(SQL["measure_workers"])}
        dead_letters = {row["error_class"]: row["letters"] for row in await fetch(SQL["measure_letters"])}
        circuits = [CircuitState(*row) for row in await fetch(SQL["measure_circuits"])]
        types = {row["type"]: row["provider"] for row in await fetch(SQL["measure_types"])}
        return Measured(depths, parked, workers, dead_letters, circuits, types)
