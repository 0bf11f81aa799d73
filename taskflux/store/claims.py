"""From record to running, and from running to what follows: claims, settlements, and the leases that guard them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from taskflux.store.database import Database, json_text, note, storable
from taskflux.store.statements import statements
from taskflux.tasks.decision import Decision

SQL: Final = statements("claims")


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
            SQL["beat"],
            id=worker.id,
            handler=worker.handler,
            label=worker.label,
            origin=worker.origin,
            pid=worker.pid,
            in_flight=in_flight,
            type=worker.type,
        )
        return row is not None

    async def end(self) -> None:
        """Give the lease up: what is not settled is free at once."""
        await self.database.execute(SQL["end_lease"], id=self.worker.id)

    async def claim(self, task_type: str, versions: Mapping[UUID, int]) -> Sequence[Claim]:
        """Claim these tasks (id → version of the record); those not claimable at their version are left out."""
        ids = sorted(versions)
        if not ids:
            return []
        rows = await self.database.fetch(
            SQL["claim"],
            ids=ids,
            versions=[versions[task] for task in ids],
            least=ids[0],
            greatest=ids[-1],
            type=task_type,
            worker=self.worker.id,
            label=self.worker.label,
        )
        return [Claim(**row) for row in rows]

    async def reclaim(self, versions: Mapping[UUID, int]) -> Sequence[Claim]:
        """Those of these tasks that an earlier `claim` made ours though its answer was lost.

        The caller leaves out what it runs already.
        """
        ids = sorted(versions)
        if not ids:
            return []
        rows = await self.database.fetch(
            SQL["reclaim"],
            ids=ids,
            versions=[versions[task] for task in ids],
            least=ids[0],
            greatest=ids[-1],
            worker=self.worker.id,
        )
        return [Claim(**row) for row in rows]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        """Write these outcomes in one statement; one answer for each."""
        if not settlements:
            return []
        batch = sorted(settlements, key=lambda settlement: settlement.id)
        decisions = [settlement.decision for settlement in batch]
        ids = [settlement.id for settlement in batch]
        rows = await self.database.fetch(
            SQL["settle"],
            ids=ids,
            versions=[settlement.version for settlement in batch],
            states=[decision.state for decision in decisions],
            events=[decision.event for decision in decisions],
            delays=[decision.delay for decision in decisions],
            given_back=[int(decision.give_back) for decision in decisions],
            handbacks=[decision.handbacks for decision in decisions],
            results=[None if decision.result is None else json_text(decision.result) for decision in decisions],
            error_classes=[decision.error_class for decision in decisions],
            reasons=[None if decision.reason is None else storable(decision.reason) for decision in decisions],
            notes=[note(": ".join(filter(None, (each.error_class, each.reason)))) for each in decisions],
            spans=[settlement.span for settlement in batch],
            least=ids[0],
            greatest=ids[-1],
        )
        written = {row["id"]: Settled(True, row["late"], row["age"]) for row in rows}
        return [written.get(settlement.id, Settled(False)) for settlement in settlements]
