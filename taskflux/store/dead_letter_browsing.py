"""Looking at dead letters: pages, groups, one, and saying that one needs no replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from taskflux.store.database import Database, Row

MOST_GROUPS: Final = 500
OPEN: Final = "open"


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters: all that are given must hold; None gives nothing. `created_before` is exclusive."""

    type: str | None = None
    error_class: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    origin_topic: str | None = None

    @property
    def empty(self) -> bool:
        """Whether every letter passes."""
        return not any(self.parameters())

    def parameters(self) -> tuple[str | datetime | None, ...]:
        """In the order of the statements."""
        return self.type, self.error_class, self.created_after, self.created_before, self.origin_topic


@dataclass(frozen=True, slots=True)
class Place:
    """Where a letter stands among all: a page begins behind one."""

    created_at: datetime
    id: UUID


@dataclass(frozen=True, slots=True)
class DeadLetterShelf:
    """The dead letters of one database, as the person who looks after them sees them."""

    database: Database

    async def page(
        self, tenant: str, wanted: LetterFilter, state: str | None, behind: Place | None, limit: int
    ) -> Sequence[Row]:
        """At most `limit` letters, newest first (columns of `page_of_dead_letters`); `state` None takes every state."""
        at, letter = (behind.created_at, behind.id) if behind else (None, None)
        return await self.database.fetch("page_of_dead_letters", tenant, *wanted.parameters(), state, at, letter, limit)

    async def groups(self, tenant: str, wanted: LetterFilter, state: str | None) -> Sequence[Row]:
        """How many letters there are by type and error class, the `MOST_GROUPS` largest."""
        return await self.database.fetch("groups_of_dead_letters", tenant, *wanted.parameters(), state, MOST_GROUPS)

    async def count(self, tenant: str, wanted: LetterFilter, state: str | None) -> int:
        """How many letters there are."""
        row = await self.database.fetchrow("count_dead_letters", tenant, *wanted.parameters(), state)
        return int(row["letters"]) if row else 0

    async def get(self, tenant: str, letter: UUID) -> Row | None:
        """Everything about one (columns of `get_dead_letter`), or None."""
        return await self.database.fetchrow("get_dead_letter", letter, tenant)

    async def discard(self, tenant: str, letter: UUID, reason: str) -> bool:
        """Say that an open letter needs no replay; whether it was open."""
        return await self.database.execute("discard_dead_letter", letter, tenant, reason) > 0
