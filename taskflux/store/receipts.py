"""Delivery reports on the tasks that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from taskflux.store.database import Database
from taskflux.tasks.delivery import DeliveryReport
from taskflux.tasks.states import State


@dataclass(frozen=True, slots=True)
class Recorded:
    """A report that found its task.

    `before` is the state in which it found it; not `kept`: it says no more than what was known; `first` of this
    replay of the task.
    """

    task: UUID
    tenant: str
    type: str
    before: State
    kept: bool
    first: bool


@dataclass(frozen=True, slots=True)
class Receipts:
    """What was reported of tasks, and whom that resolves."""

    database: Database

    async def record(self, reports: Sequence[DeliveryReport]) -> Sequence[Recorded]:
        """Keep these, each task once; those whose task is unknown or was replayed since are left out.

        Raises:
            StoreError: nothing is known to be kept; the same reports may come again.
        """
        batch = sorted(reports, key=lambda report: report.task)
        if not batch:
            return []
        rows = await self.database.fetch(
            "record_reports",
            [each.task for each in batch],
            [each.replay for each in batch],
            [each.status.value for each in batch],
            [each.code or None for each in batch],
            [each.description or None for each in batch],
            [each.request_id or None for each in batch],
            [each.reported_at or None for each in batch],
            batch[0].task,
            batch[-1].task,
        )
        return [
            Recorded(row["id"], row["tenant"], row["type"], State(row["before"]), row["heavier"], row["first"])
            for row in rows
        ]

    async def resolve_early(self, limit: int) -> int:
        """Resolve held tasks whose report had come before they were held; how many."""
        return len(await self.database.fetch("resolve_early", limit))
