"""The database as a whole: what the elected leader maintains and measures, and what `taskflux doctor` checks.

The leader maintains expired leases, records that Kafka lost, partitions and old keys.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from taskflux.store.database import Database, Row, statements, translated
from taskflux.store.migrate import migrations
from taskflux.store.settings import PostgresSettings
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


class Deliverable(NamedTuple):
    """What Kafka will deliver of a type: the records from `next` on, below `end`, of a partition of this log."""

    type: str
    log: UUID
    partition: int
    next: int
    end: int


class Beat(NamedTuple):
    """A worker's beat: its number, and when the PostgreSQL that counts it was started. Compared, never subtracted."""

    number: int
    server: datetime


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep found: `looked_at` claims without a lease, and their number by type and new state."""

    looked_at: int
    tasks: Mapping[tuple[str, str], int]


class Needed(NamedTuple):
    """Tasks of a type that are due soon or run, and its provider's circuit: whether the next probe is due soon."""

    due: int = 0
    running: int = 0
    open: bool = False
    probe_soon: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What the push scaler reads. "Soon" is within `ahead` seconds."""

    database: Database
    ahead: float

    async def read(self, limits: Mapping[str | None, int]) -> Mapping[str | None, Needed]:
        """What each of these types needs, and at None how many rows of the outbox are overdue, of any type.

        Due and overdue rows are counted up to their limit.
        """
        limits = dict(limits)
        overdue = limits.pop(None, 0)
        rows = await self.database.fetch(
            SQL["needed"],
            types=list(limits),
            limits=list(limits.values()),
            ahead=self.ahead,
            overdue=overdue,
        )
        return {row["type"]: Needed(row["due"], row["running"], row["open"], row["probe_soon"]) for row in rows}


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
        await self.database.fetch(SQL["end_claims"])
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

    async def audit_page(
        self, after: UUID, limit: int, known: Sequence[Deliverable] = ()
    ) -> tuple[UUID | None, Sequence[Published]]:
        """Of the next `limit` outbox rows, the published ones that Kafka will not deliver by what is `known` of it, in
        the order of their ids; and where the next page begins (None: there is none).
        """
        types, logs, partitions, nexts, ends = zip(*known, strict=True) if known else ((),) * 5
        rows = await self.database.fetch(
            SQL["audit_page"],
            after=after,
            limit=limit,
            types=types,
            logs=logs,
            partitions=partitions,
            nexts=nexts,
            ends=ends,
        )
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
        return rows[0]["last"], sorted(found, key=lambda task: task.id)

    async def requeue(self, tasks: Sequence[Published], rate: float, start: float = 0.0) -> Mapping[str, int]:
        """Make these due again if they are still published at their version and not claimed; how many by type.

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

    async def backfill(self, limit: int) -> bool:
        """Make the outbox rows that are missing for some of the next `limit` tasks; false: all tasks were looked at.

        Those lack one that were queued before migration 0013, or whose row a process of the release before has deleted.
        """
        place = await self.database.fetchrow(SQL["backfill_place"])
        if place is not None:
            await self.database.fetch(SQL["backfill"], after=place["after"], limit=limit)
        return place is not None

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


_TRIES = 5


@dataclass(frozen=True, slots=True)
class Pooling:
    """`between`: a pooler is between us and PostgreSQL; `transaction`: it is in transaction mode."""

    between: bool
    transaction: bool


@dataclass(frozen=True, slots=True)
class Checkup:
    """The checks of `taskflux doctor`. None of them changes anything, and each may raise StoreError."""

    database: Database

    async def server(self) -> Row:
        """Version, settings that matter, and limits."""
        return await self.database.fetchrow(SQL["checkup_server"])

    async def activity(self, version: int) -> Row:
        """Checkpoints, WAL, and blocks read by our database since the statistics were reset."""
        return await self.database.fetchrow(
            SQL["checkup_activity" if version >= 170000 else "checkup_activity_before_17"]
        )

    async def indexes_complete(self, keys: Sequence[str]) -> bool:
        """Whether every partition has its indexes, those of these metadata keys included."""
        row = await self.database.fetchrow(SQL["checkup_indexes"], keys=keys)
        return bool(row and row["complete"])

    async def clock_difference(self) -> tuple[float, float]:
        """Seconds that PostgreSQL's clock is ahead of ours, and the error of that figure."""
        await self.database.fetchrow(SQL["checkup_clock"])  # the connection is open from here on
        before = time.time()
        row = await self.database.fetchrow(SQL["checkup_clock"])
        after = time.time()
        assert row is not None
        return row["now"] - (before + after) / 2, (after - before) / 2

    async def missing_migrations(self) -> Sequence[str]:
        """Migrations of this program that the database lacks. SchemaTooOld where it has none at all."""
        done = {row["version"] for row in await self.database.fetch(SQL["checkup_schema"])}
        return [f"{each.version:04} {each.name}" for each in migrations() if each.version not in done]

    async def connections(self) -> tuple[Mapping[str, int], int]:
        """Connections of each of our processes by its label, and the number of all others."""
        rows = await self.database.fetch(SQL["checkup_connections"])
        ours = {row["label"]: row["connections"] for row in rows if row["label"] is not None}
        return ours, sum(row["connections"] for row in rows if row["label"] is None)

    async def oldest_transaction(self) -> float:
        """Seconds that the oldest open transaction of any client has lasted."""
        row = await self.database.fetchrow(SQL["checkup_oldest_transaction"])
        return float(row["seconds"]) if row else 0.0

    async def missing_partitions(self, weeks_ahead: int) -> Sequence[str]:
        """Weeks from this one on that have no partition."""
        rows = await self.database.fetch(SQL["checkup_partitions"], weeks_ahead=weeks_ahead)
        return [row["week"] for row in rows if not row["exists"]]

    async def strays(self) -> bool:
        """Whether a task is in the default partition."""
        row = await self.database.fetchrow(SQL["checkup_strays"])
        return bool(row and row["strays"])

    async def leader(self) -> float | None:
        """Seconds until the relays' leader has to renew (negative: it is late); None: none was ever elected."""
        row = await self.database.fetchrow(SQL["checkup_leader"])
        return float(row["left"]) if row else None

    async def workers(self, lease: float) -> Mapping[str, tuple[int, int]]:
        """Handler → workers alive, and workers that have been silent for three leases and still hold tasks."""
        rows = await self.database.fetch(SQL["checkup_workers"], lease=lease)
        return {row["handler"]: (row["alive"], row["lost"]) for row in rows}

    async def open_circuits(self) -> Sequence[Row]:
        """provider, error_class, reason, seconds."""
        return await self.database.fetch(SQL["checkup_circuits"])

    async def overdue(self) -> Mapping[bool, tuple[float, int]]:
        """Dead letters (True) and tasks (False) that are due and not published: longest wait in seconds, how many."""
        rows = await self.database.fetch(SQL["checkup_due"])
        return {row["dead"]: (row["seconds"], row["tasks"]) for row in rows}


async def pooling(settings: PostgresSettings) -> Pooling:
    """Find out whether there is a pooler, by two connections that keep no transaction open.

    A pooler gives its clients process ids of its own. In transaction mode, a second client is soon served by the same
    server process that has just served the first one, which is still connected.

    Raises:
        StoreError: PostgreSQL cannot be reached.
    """
    with translated():
        first = await _connect(settings)
        try:
            between = first.get_server_pid() != await first.fetchval("SELECT pg_backend_pid()")
            if not between:
                return Pooling(False, False)
            second = await _connect(settings)
            try:
                for _ in range(_TRIES):
                    served = await first.fetchval("SELECT pg_backend_pid()")
                    if served == await second.fetchval("SELECT pg_backend_pid()"):
                        return Pooling(True, True)
                return Pooling(True, False)
            finally:
                await asyncio.shield(second.close(timeout=settings.connect_timeout))
        finally:
            await asyncio.shield(first.close(timeout=settings.connect_timeout))


async def _connect(settings: PostgresSettings) -> asyncpg.Connection:
    return await asyncpg.connect(
        settings.dsn.get_secret_value(),
        timeout=settings.connect_timeout,
        command_timeout=settings.statement_timeout,
        statement_cache_size=0,
        server_settings={"application_name": "taskflux doctor"},
    )
