"""From record to running, and from running to what follows: claims, settlements, and the leases that guard them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from taskflux.store.database import Database, Row, json_text, storable
from taskflux.tasks.decision import Decision

NOTE_LENGTH = 160
"""Characters of a reason that stand in the timeline; the whole of the last one is on the task."""


class Claim(NamedTuple):
    """A task that is ours until we settle it or our lease runs out. `waited` is seconds since it was due.

    `attempt_span` is the traceparent of the last attempt's span that was recorded.
    """

    id: UUID
    version: int
    attempt: int
    max_attempts: int
    handbacks: int
    replays: int
    tenant: str
    key: str | None
    payload: str
    metadata: str | None
    progress: str | None
    traceparent: str | None
    attempt_span: str | None
    created_at: datetime
    expired: bool
    waited: float


class Settlement(NamedTuple):
    """How a claim ended.

    `span` is the traceparent of its attempt's span, where that is recorded; `seconds` what its handler took, None where
    it was not called.
    """

    id: UUID
    version: int
    decision: Decision
    span: str | None = None
    seconds: float | None = None


class Settled(NamedTuple):
    """What became of a settlement; `age` is seconds since the task was accepted.

    Not `written`: the lease had run out and somebody else has claimed the task since, or an earlier try of the same
    settlement was written though its answer was lost.
    """

    written: bool
    late: bool = False
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class Worker:
    """One process as the store knows it."""

    id: UUID
    handler: str
    label: str
    pid: int
    origin: str | None
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Claims:
    """What one worker holds."""

    database: Database
    worker: Worker

    async def beat(self, in_flight: int) -> bool:
        """Renew the lease; false when somebody has ended it."""
        worker = self.worker
        row = await self.database.fetchrow(
            "beat", worker.id, worker.handler, worker.label, worker.origin, worker.pid, in_flight, worker.type
        )
        return row is not None

    async def end(self) -> None:
        """Give the lease up: what is not settled is free at once."""
        await self.database.execute("end_lease", self.worker.id)

    async def claim(self, task_type: str, versions: Mapping[UUID, int]) -> Sequence[Claim]:
        """Claim these tasks (id → version of the record); those not claimable at their version are left out."""
        ids = sorted(versions)
        if not ids:
            return []
        at = [versions[task] for task in ids]
        worker = self.worker
        rows = await self.database.fetch("claim", ids, at, ids[0], ids[-1], task_type, worker.id, worker.label)
        return [_claim(row) for row in rows]

    async def reclaim(self, versions: Mapping[UUID, int]) -> Sequence[Claim]:
        """Those of these tasks that an earlier `claim` made ours though its answer was lost.

        The caller leaves out what it runs already.
        """
        ids = sorted(versions)
        if not ids:
            return []
        at = [versions[task] for task in ids]
        rows = await self.database.fetch("reclaim", ids, at, ids[0], ids[-1], self.worker.id)
        return [_claim(row) for row in rows]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        """Write these outcomes in one statement; one answer for each."""
        if not settlements:
            return []
        batch = sorted(settlements, key=lambda settlement: settlement.id)
        decisions = [settlement.decision for settlement in batch]
        ids = [settlement.id for settlement in batch]
        rows = await self.database.fetch(
            "settle",
            ids,
            [settlement.version for settlement in batch],
            [decision.state for decision in decisions],
            [decision.event for decision in decisions],
            [decision.delay for decision in decisions],
            [int(decision.give_back) for decision in decisions],
            [decision.handbacks for decision in decisions],
            [None if decision.result is None else json_text(decision.result) for decision in decisions],
            [decision.error_class for decision in decisions],
            [None if decision.reason is None else storable(decision.reason) for decision in decisions],
            [_note(decision) for decision in decisions],
            [settlement.span for settlement in batch],
            ids[0],
            ids[-1],
        )
        written = {row["id"]: Settled(True, row["late"], row["age"]) for row in rows}
        return [written.get(settlement.id, Settled(False)) for settlement in settlements]


def _claim(row: Row) -> Claim:
    return Claim(
        row["id"],
        row["version"],
        row["attempts"],
        row["max_attempts"],
        row["handbacks"],
        row["replays"],
        row["tenant"],
        row["key"],
        row["payload"],
        row["metadata"],
        row["result"],
        row["traceparent"],
        row["attempt_span"],
        row["created_at"],
        bool(row["expired"]),
        row["waited"],
    )


def _note(decision: Decision) -> str:
    parts = [part for part in (decision.error_class, decision.reason) if part]
    return storable(": ".join(parts)).replace("|", "/").replace("\n", " ")[:NOTE_LENGTH]
