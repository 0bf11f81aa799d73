"""What the dead letters' routes need from the process that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from taskflux.store.dead_letter_browsing import LetterFilter, Place
from taskflux.store.dead_letter_replays import Replayed
from taskflux.tasks.submission import Submission

Row = Mapping[str, Any]


class Shelf(Protocol):
    """Where dead letters stand; `taskflux.store.dead_letter_browsing.DeadLetterShelf` is one. All raise StoreError."""

    async def page(
        self, tenant: str, wanted: LetterFilter, state: str | None, behind: Place | None, limit: int
    ) -> Sequence[Row]:
        """At most `limit` letters, newest first."""
        ...

    async def groups(self, tenant: str, wanted: LetterFilter, state: str | None) -> Sequence[Row]:
        """How many letters there are by type and error class."""
        ...

    async def count(self, tenant: str, wanted: LetterFilter, state: str | None) -> int:
        """How many letters there are."""
        ...

    async def get(self, tenant: str, letter: UUID) -> Row | None:
        """Everything about one."""
        ...

    async def discard(self, tenant: str, letter: UUID, reason: str) -> bool:
        """Say that an open letter needs no replay; whether it was open."""
        ...


class Replays(Protocol):
    """Sends letters again; `taskflux.store.dead_letter_replays.DeadLetterReplays` is one. All raise StoreError."""

    async def replay(self, tenant: str, letter: UUID, payload: str | None) -> Replayed | None:
        """Send a letter's task again; None: it is not open, or its task has moved on."""
        ...

    async def replay_as(self, tenant: str, letter: UUID, mended: Submission, *, edited: bool) -> Replayed | None:
        """Make a letter without a task into a new one; None: it is not open, or it has a task."""
        ...

    async def start_bulk(self, tenant: str, replay: UUID, wanted: LetterFilter, rate: float) -> Row:
        """Ask for a bulk replay: its id, how many letters it matched, its status."""
        ...

    async def get_bulk(self, tenant: str, replay: UUID) -> Row | None:
        """A bulk replay."""
        ...

    async def outcomes(self, replay: UUID) -> Mapping[str, int]:
        """How many of its tasks are in which state."""
        ...

    async def stop_bulk(self, tenant: str, replay: UUID) -> bool:
        """Stop it; whether it was running."""
        ...


def _uncounted(error_class: str, how: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class DeadLetterDesk:
    """Handed to `create_app` with the services.

    Args:
        topic_prefix: what stands before the topics' names; the topic of a broken record tells its type.
        on_replayed: told the error class of a letter that was sent again, and `single` or `mended`.
    """

    shelf: Shelf
    replays: Replays
    topic_prefix: str = ""
    on_replayed: Callable[[str, str], None] = _uncounted
