"""Cancelling a task that waits, and resolving one whose outcome nobody knows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from taskflux.store.database import Database
from taskflux.tasks.states import Event, State

NOTE_LENGTH: Final = 160
"""Characters of a reason that stand in the timeline."""


class Resolution(StrEnum):
    """What is decided about an uncertain task."""

    SUCCEEDED = "succeeded"  # its side effect did happen
    RESEND = "resend"  # it shall be tried again now, at the risk of a repeat
    DEAD = "dead"  # it is given up, and becomes a dead letter


_FOLLOWS: Final = {
    Resolution.SUCCEEDED: (Event.RESOLVED_SUCCEEDED, State.SUCCEEDED),
    Resolution.RESEND: (Event.RESOLVED_RESEND, State.SCHEDULED),
    Resolution.DEAD: (Event.RESOLVED_DEAD, State.DEAD),
}


@dataclass(frozen=True, slots=True)
class Decisions:
    """The transitions that somebody decides on."""

    database: Database

    async def cancel(self, task: UUID, tenant: str, reason: str | None = None) -> bool:
        """Keep a task that waits from running; false when it does not wait (any more)."""
        return await self.database.fetchrow("cancel", task, tenant, note(reason)) is not None

    async def resolve(self, task: UUID, tenant: str | None, resolution: Resolution, reason: str | None = None) -> bool:
        """End the uncertainty about a task of `tenant` (None: of whomever); false when it is not uncertain (any more).

        `reason` stands in the timeline, and is the reason of the dead letter where it becomes one; the error class
        stays what it was.
        """
        event, state = _FOLLOWS[resolution]
        kept = None if reason is None else storable(reason)
        row = await self.database.fetchrow("resolve", task, tenant, state.value, event.value, kept, note(reason))
        return row is not None


def note(text: str | None) -> str:
    """`text` as an entry of a timeline takes it."""
    return storable(text or "").replace("|", "/").replace("\n", " ")[:NOTE_LENGTH]


def storable(text: str) -> str:
    """PostgreSQL's text takes neither NUL nor lone surrogates."""
    return text.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")
