"""Notifications by the caller's id: each is begun once, and its outcome is kept. And delivery reports of tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from taskflux.store.database import Database, statements
from taskflux.store.texts import json_text
from taskflux.tasks.model import DeliveryReport
from taskflux.tasks.states import State

SQL: Final = statements("notifications")


class NotificationState(StrEnum):
    BEGUN = "begun"  # running, or its process was lost
    SENT = "sent"
    FAILED = "failed"  # not sent, or not to all: it may be tried again
    UNKNOWN = "unknown"  # it may have been sent


@dataclass(frozen=True, slots=True)
class Begun:
    """The right to send; `progress` is what earlier attempts have noted, `since` when the first began."""

    version: int
    since: datetime
    progress: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Repeated:
    """It was begun before: `outcome` is given if it was sent, None if that is unknown."""

    outcome: Mapping[str, Any] | None
    progress: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reused:
    """The id was used for another payload."""


@dataclass(frozen=True, slots=True)
class Notifications:
    """The table that suppresses repeats. Every change compares and sets."""

    database: Database

    async def begin(self, name: str, attempt: int, digest: bytes = b"") -> Begun | Repeated | Reused:
        """Take the right to send `name`, whose payload has this digest, or learn its outcome.

        Raises:
            StoreError: it is not known to be begun.
        """
        while True:
            row = await self.database.fetchrow(SQL["begin_notification"], id=name, attempt=attempt, digest=digest)
            if row is not None:
                return Begun(row["version"], row["created_at"], _object(row["progress"]))
            row = await self.database.fetchrow(SQL["get_notification"], id=name, digest=digest)
            if row is not None and not row["same"]:
                return Reused()
            if row is not None and row["state"] != NotificationState.FAILED:  # else it has just ended
                sent = row["state"] == NotificationState.SENT
                return Repeated(_object(row["outcome"]) if sent else None, _object(row["progress"]))

    async def end(
        self,
        name: str,
        version: int,
        state: NotificationState,
        *,
        outcome: Mapping[str, Any] | None = None,
        progress: Mapping[str, Any] | None = None,
    ) -> bool:
        """Store the outcome of the one begun at `version`; false if another attempt has begun since."""
        row = await self.database.fetchrow(
            SQL["end_notification"],
            id=name,
            version=version,
            state=state.value,
            outcome=_text(outcome),
            progress=_text(progress),
        )
        return row is not None


def _text(document: Mapping[str, Any] | None) -> str | None:
    return None if document is None else json_text(document)


def _object(text: str | None) -> Mapping[str, Any]:
    document: Mapping[str, Any] = json.loads(text) if text else {}
    return document


@dataclass(frozen=True, slots=True)
class Recorded:
    """A report that was matched to its task.

    `before` is the state of the task until then; not `kept`: it adds nothing to what was known; `first`: it is the
    first of this replay of the task.
    """

    task: UUID
    tenant: str
    type: str
    before: State
    kept: bool
    first: bool


@dataclass(frozen=True, slots=True)
class Receipts:
    """Delivery reports of tasks, and the uncertain tasks that they resolve."""

    database: Database

    async def record(self, reports: Sequence[DeliveryReport]) -> Sequence[Recorded]:
        """Store these, one for each task; those whose task is unknown or was replayed since are left out.

        Raises:
            StoreError: nothing is known to be stored; the same reports may be sent again.
        """
        batch = sorted(reports, key=lambda report: report.task)
        if not batch:
            return []
        rows = await self.database.fetch(
            SQL["record_reports"],
            ids=[each.task for each in batch],
            replays=[each.replay for each in batch],
            statuses=[each.status.value for each in batch],
            codes=[each.code or None for each in batch],
            descriptions=[each.description or None for each in batch],
            request_ids=[each.request_id or None for each in batch],
            reported_at=[each.reported_at or None for each in batch],
            least=batch[0].task,
            greatest=batch[-1].task,
        )
        return [
            Recorded(row["id"], row["tenant"], row["type"], State(row["before"]), row["heavier"], row["first"])
            for row in rows
        ]

    async def resolve_early(self, limit: int) -> int:
        """Resolve held tasks whose report came before they were held; how many."""
        return len(await self.database.fetch(SQL["resolve_early"], limit=limit))
