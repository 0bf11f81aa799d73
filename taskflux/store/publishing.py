"""What is due, who publishes it, and what Kafka has confirmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from taskflux.store.database import Database, Row


class Due(NamedTuple):
    """A task that the caller has promised to publish, at the version that its record must carry."""

    id: UUID
    type: str
    version: int
    key: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class DeadDue:
    """A dead task that the caller has promised to publish to the dead-letter topic."""

    id: UUID
    type: str
    version: int
    error_class: str
    attempts: int
    traceparent: str | None


class Confirmation(NamedTuple):
    """Kafka holds the record of (id, version) at this place of this log."""

    id: UUID
    version: int
    log: UUID
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Publishing:
    """The narrow table of what is due. `grace` (seconds) must be longer than the producer's own deadline."""

    database: Database
    grace: float

    async def next_due(self) -> Mapping[str | None, float]:
        """Seconds until each type's next row is due, negative when overdue. Dead letters stand under None."""
        return {row["type"]: row["wait"] for row in await self.database.fetch("next_due")}

    async def take(self, task_type: str, limit: int) -> Sequence[Due]:
        """Promise to publish up to `limit` tasks that are due now."""
        found = _versions(await self.database.fetch("due_now", task_type, limit))
        if not found:
            return []
        ids = list(found)
        rows = await self.database.fetch("take_due", ids, list(found.values()), ids[0], ids[-1], self.grace)
        return [Due(row["id"], task_type, row["version"], row["key"], row["traceparent"]) for row in rows]

    async def take_dead(self, limit: int) -> Sequence[DeadDue]:
        """Promise to publish up to `limit` dead letters."""
        ids = sorted(row["task_id"] for row in await self.database.fetch("dead_now", limit))
        if not ids:
            return []
        rows = await self.database.fetch("take_dead", ids, ids[0], ids[-1], self.grace)
        return [
            DeadDue(
                row["id"],
                row["type"],
                row["version"],
                row["error_class"] or "Unknown",
                row["attempts"],
                row["traceparent"],
            )
            for row in rows
        ]

    async def confirm(self, confirmations: Sequence[Confirmation]) -> Sequence[None]:
        """The records are in Kafka. An answer for each, so that it can be group-committed."""
        if not confirmations:
            return []
        # A task stands once in a batch; of two publishes only the newer can still matter.
        newest = {each.id: each for each in sorted(confirmations, key=lambda each: each.version)}
        ids = sorted(newest)
        batch = [newest[task] for task in ids]
        await self.database.execute(
            "confirm",
            ids,
            [each.version for each in batch],
            [each.log for each in batch],
            [each.partition for each in batch],
            [each.offset for each in batch],
            ids[0],
            ids[-1],
        )
        return [None] * len(confirmations)

    async def confirm_dead(self, letters: Sequence[DeadDue]) -> None:
        """The dead letters are in their topic."""
        await self.database.execute(
            "confirm_dead", [letter.id for letter in letters], [letter.version for letter in letters]
        )

    async def expire(self, limit: int) -> Sequence[str]:
        """End waiting tasks whose expiresAt has passed; their types."""
        found = _versions(await self.database.fetch("expired_now", limit))
        if not found:
            return []
        ids = list(found)
        rows = await self.database.fetch("expire_waiting", ids, list(found.values()), ids[0], ids[-1])
        return [row["type"] for row in rows]


def _versions(rows: Sequence[Row]) -> dict[UUID, int]:
    """Id → version, in the order of the ids."""
    return dict(sorted((row["task_id"], row["version"]) for row in rows))
