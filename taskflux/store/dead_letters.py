"""What could not be done, kept until a person has looked at it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from taskflux.store.database import Database, Row
from taskflux.tasks.submission import Submission


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead task, or a record that was no task. `identity` says when two of them are the same."""

    id: UUID
    identity: str
    error_class: str
    reason: str
    origin: Mapping[str, object]
    task_id: UUID | None = None
    task_version: int | None = None
    type: str | None = None
    attempts: int = 0
    traceparent: str | None = None
    record_key: bytes | None = None
    record_value: bytes | None = None
    record_headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """The table of dead letters."""

    database: Database

    async def add(self, letters: Sequence[DeadLetter]) -> Mapping[UUID, str]:
        """Keep these, each identity once; the error class of each that is new.

        A dead task's reason and payload are taken from its row.
        """
        if not letters:
            return {}
        tasks = [letter.task_id for letter in letters if letter.task_id is not None]
        rows = await self.database.fetch(
            "add_dead_letters",
            [letter.id for letter in letters],
            [letter.identity for letter in letters],
            [letter.task_id for letter in letters],
            [letter.task_version for letter in letters],
            [letter.type for letter in letters],
            [letter.error_class for letter in letters],
            [letter.reason for letter in letters],
            [letter.attempts for letter in letters],
            [letter.traceparent for letter in letters],
            [json.dumps(letter.origin) for letter in letters],
            [letter.record_key for letter in letters],
            [letter.record_value for letter in letters],
            [_headers(letter.record_headers) for letter in letters],
            min(tasks, default=None),
            max(tasks, default=None),
        )
        return {row["id"]: row["error_class"] for row in rows}


def _headers(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    if not headers:
        return None
    return json.dumps(
        [[name, None if value is None else base64.b64encode(value).decode("ascii")] for name, value in headers]
    )


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


MOST_BULK_REPLAYS: Final = 100
"""Bulk replays that are carried at once; others wait for one of them to end."""

EDITED: Final = "edited payload"


@dataclass(frozen=True, slots=True)
class Replayed:
    """A letter was sent again as this task."""

    letter: UUID
    task_id: UUID
    type: str
    error_class: str
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class BulkReplay:
    """A bulk replay that is under way. `allowance` is how many letters its rate allows now."""

    id: UUID
    tenant: str
    filter: LetterFilter
    batch: int
    cursor_at: datetime | None
    cursor_id: UUID | None
    created_at: datetime
    allowance: int


@dataclass(frozen=True, slots=True)
class DeadLetterReplays:
    """Replays of one database's dead letters."""

    database: Database

    async def replay(self, tenant: str, letter: UUID, payload: str | None) -> Replayed | None:
        """Send a letter's task again, with `payload` (JSON text) in place of its own where it is given.

        None: the letter is not open, or its task does not stand dead as the letter tells.
        """
        note = "" if payload is None else EDITED
        rows = await self.database.fetch(
            "replay_dead_letters", [letter], tenant, payload, None, None, None, None, False, note
        )
        return _replayed(rows[0]) if rows else None

    async def replay_as(self, tenant: str, letter: UUID, mended: Submission, *, edited: bool) -> Replayed | None:
        """Make a letter that has no task (any more) into the new task `mended`.

        None: the letter is not open, or it has a task.
        """
        row = await self.database.fetchrow(
            "replay_as_new_task",
            letter,
            tenant,
            mended.id,
            mended.type,
            mended.payload,
            mended.max_attempts,
            mended.traceparent,
            edited,
        )
        return _replayed(row) if row else None

    async def start_bulk(self, tenant: str, replay: UUID, wanted: LetterFilter, rate: float) -> Row:
        """Ask for a bulk replay of the open letters that are `wanted`, at `rate` a second: id, matched, status."""
        row = await self.database.fetchrow(
            "start_bulk_replay", replay, tenant, *wanted.parameters(), to_text(wanted), rate
        )
        assert row is not None
        return row

    async def get_bulk(self, tenant: str, replay: UUID) -> Row | None:
        """A bulk replay (columns of `get_bulk_replay`), or None."""
        return await self.database.fetchrow("get_bulk_replay", replay, tenant)

    async def outcomes(self, replay: UUID) -> Mapping[str, int]:
        """How many tasks that it replayed have ended in which state, or are in which."""
        rows = await self.database.fetch("bulk_replay_outcomes", replay)
        return {row["outcome"]: row["letters"] for row in rows}

    async def stop_bulk(self, tenant: str, replay: UUID) -> bool:
        """Stop a bulk replay at once; whether it was running."""
        return await self.database.execute("stop_bulk_replay", replay, tenant) > 0

    async def running(self) -> Sequence[BulkReplay]:
        """Bulk replays that are under way, the oldest first."""
        return [_bulk(row) for row in await self.database.fetch("running_bulk_replays", MOST_BULK_REPLAYS)]

    async def carry_on(self, bulk: BulkReplay, limit: int) -> tuple[int, Sequence[Replayed]]:
        """Replay the next letters of `bulk`, at most `limit`: how many were looked at, and which were sent.

        Whoever carries the same batch at the same time changes nothing. Less than `limit` looked at: that was all.
        """
        wanted = bulk.filter.parameters()
        letters = await self.database.fetch(
            "next_of_bulk_replay", bulk.tenant, *wanted, bulk.created_at, bulk.cursor_at, bulk.cursor_id, limit
        )
        last = letters[-1] if letters else None
        rows = await self.database.fetch(
            "replay_dead_letters",
            [row["id"] for row in letters],
            bulk.tenant,
            None,
            bulk.id,
            bulk.batch,
            last["created_at"] if last else None,
            last["id"] if last else None,
            len(letters) < limit,
            f"bulk replay: {bulk.id}",
        )
        return len(letters), [_replayed(row) for row in rows]


_NAMES: Final = {
    "taskType": "type",
    "errorClass": "error_class",
    "createdAfter": "created_after",
    "createdBefore": "created_before",
    "originTopic": "origin_topic",
}


def to_text(wanted: LetterFilter) -> str:
    """A filter as JSON, with the names of the API."""
    values = {name: getattr(wanted, field) for name, field in _NAMES.items()}
    return json.dumps(
        {
            name: _moment(value) if isinstance(value, datetime) else value
            for name, value in values.items()
            if value is not None
        }
    )


def _moment(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def from_text(text: str) -> LetterFilter:
    """The filter that `to_text` wrote."""
    given: dict[str, Any] = {_NAMES[name]: value for name, value in json.loads(text).items()}
    for field in ("created_after", "created_before"):
        if field in given:
            given[field] = datetime.fromisoformat(given[field])
    return LetterFilter(**given)


def _replayed(row: Row) -> Replayed:
    return Replayed(row["letter"], row["task_id"], row["type"], row["error_class"], row["traceparent"])


def _bulk(row: Row) -> BulkReplay:
    return BulkReplay(
        row["id"],
        row["tenant"],
        from_text(row["filter"]),
        row["batches"],
        row["cursor_at"],
        row["cursor_id"],
        row["created_at"],
        row["allowance"],
    )
