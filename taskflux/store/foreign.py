"""Tasks of other producers: one row for each, however often its record is delivered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from taskflux.store.database import Database


@dataclass(frozen=True, slots=True)
class Adoptee:
    """A task that another producer wrote. `identity` says when two of them are the same, `id` is its name if not."""

    identity: str
    digest: bytes
    id: UUID
    type: str
    payload: str
    max_attempts: int
    traceparent: str


@dataclass(frozen=True, slots=True)
class Known:
    """What stands under an identity: the task, the digest of its payload, and whether it was made just now."""

    task: UUID
    digest: bytes
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class ForeignTasks:
    """The table of what was adopted."""

    database: Database

    async def adopt(self, batch: Sequence[Adoptee], grace: float) -> Mapping[str, Known]:
        """Make a row for each that has none yet; what stands under each identity then.

        New ones are due after `grace` seconds, at version 1. Each identity stands once in a batch. It may be called
        again with the same batch after an error: what was written then is found.

        Raises:
            StoreError: nothing is known to be written.
        """
        rows = await self.database.fetch(
            "adopt",
            [each.identity for each in batch],
            [each.digest for each in batch],
            [each.id for each in batch],
            [each.type for each in batch],
            [each.payload for each in batch],
            [each.max_attempts for each in batch],
            [each.traceparent for each in batch],
            grace,
        )
        made = {row["task_id"] for row in rows}
        known = {each.identity: Known(each.id, each.digest, fresh=True) for each in batch if each.id in made}
        others = [each.identity for each in batch if each.identity not in known]
        if others:
            for row in await self.database.fetch("find_foreign", others):
                known[row["identity"]] = Known(row["task_id"], row["digest"])
        return known
