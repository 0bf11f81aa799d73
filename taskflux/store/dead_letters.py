"""The dead-letter queue: tasks and records that failed for good, kept until a person replays or discards them."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID

from taskflux.store.database import Database, Row, statements
from taskflux.store.errors import RefusedData
from taskflux.store.group_commit import GroupCommit
from taskflux.store.texts import LONGEST_INDEXED, indexed, storable
from taskflux.tasks.model import Submission
from taskflux.telemetry import metrics, tracing
from taskflux.telemetry.tracing import UNTRACED, Destination

log = logging.getLogger(__name__)

SQL: Final = statements("dead_letters")


class DeadLetter(NamedTuple):
    """A dead task, or a poison record. Two with the same `identity` are the same."""

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

    async def keep(self, letters: Sequence[DeadLetter], source: Destination) -> None:
        """Add these, however long PostgreSQL is unavailable, and count those that are new.

        They were read from `source`. None of them makes it raise (see `add`).
        """
        group: GroupCommit[DeadLetter, None] = GroupCommit(partial(self._keep, source))
        await asyncio.gather(*[group.submit(letter, letter.identity) for letter in letters])

    async def _keep(self, source: Destination, letters: Sequence[DeadLetter]) -> Sequence[None]:
        with tracing.batch(source.store, [letter.traceparent for letter in letters]) if tracing.on else UNTRACED:
            stored = await self.add(letters)
        for error_class in stored.values():
            metrics.DEAD_LETTERS.labels(metrics.error_class(error_class)).inc()
        return [None] * len(letters)

    async def add(self, letters: Sequence[DeadLetter]) -> Mapping[UUID, str]:
        """Store these, each identity once; the error class of each that is new.

        A dead task's reason and payload are taken from its row. Indexed texts are cut (see `indexed`). If PostgreSQL
        still refuses one, its contents are left out, and its reason says so.

        Raises:
            StoreError: nothing is known to be stored; never because of one of these.
        """
        if not letters:
            return {}
        try:
            return await self._insert(letters)
        except RefusedData as refusal:
            if len(letters) == 1:
                return await self._add_reduced(letters[0], refusal)
        middle = len(letters) // 2
        return {**await self.add(letters[:middle]), **await self.add(letters[middle:])}

    async def _add_reduced(self, letter: DeadLetter, refusal: RefusedData) -> Mapping[UUID, str]:
        try:
            return await self._insert([_reduced(letter, refusal)])
        except RefusedData as error:
            # None of its own values are left, so the table itself refuses rows. The record stays in its topic.
            extra = {"dead_letter": letter.identity, "error": str(error)}
            log.error("a dead letter cannot be stored, not even without its contents", extra=extra)
            return {}

    async def _insert(self, letters: Sequence[DeadLetter]) -> Mapping[UUID, str]:
        tasks = [letter.task_id for letter in letters if letter.task_id is not None]
        rows = await self.database.fetch(
            SQL["add_dead_letters"],
            ids=[letter.id for letter in letters],
            identities=[letter.identity for letter in letters],
            task_ids=[letter.task_id for letter in letters],
            task_versions=[letter.task_version for letter in letters],
            types=[letter.type and indexed(letter.type) for letter in letters],
            error_classes=[indexed(letter.error_class) for letter in letters],
            reasons=[storable(letter.reason) for letter in letters],
            attempts=[letter.attempts for letter in letters],
            traceparents=[letter.traceparent for letter in letters],
            origins=[_origin(letter.origin) for letter in letters],
            record_keys=[letter.record_key for letter in letters],
            record_values=[letter.record_value for letter in letters],
            record_headers=[_headers(letter.record_headers) for letter in letters],
            least=min(tasks, default=None),
            greatest=max(tasks, default=None),
            longest=LONGEST_INDEXED,
        )
        return {row["id"]: row["error_class"] for row in rows}

    async def page(
        self, tenant: str, wanted: DeadLetterFilter, state: str | None, behind: Place | None, limit: int
    ) -> Sequence[Row]:
        """At most `limit`, newest first (columns of `page_of_dead_letters`); `state` None matches every state."""
        at, letter = (behind.created_at, behind.id) if behind else (None, None)
        return await self.database.fetch(
            SQL["page_of_dead_letters"],
            tenant=tenant,
            **asdict(wanted),
            state=state,
            behind_at=at,
            behind_id=letter,
            limit=limit,
        )

    async def groups(self, tenant: str, wanted: DeadLetterFilter, state: str | None) -> Sequence[Row]:
        """How many there are by type and error class, the `MOST_GROUPS` largest."""
        return await self.database.fetch(
            SQL["groups_of_dead_letters"], tenant=tenant, **asdict(wanted), state=state, limit=MOST_GROUPS
        )

    async def count(self, tenant: str, wanted: DeadLetterFilter, state: str | None) -> int:
        """How many there are."""
        row = await self.database.fetchrow(SQL["count_dead_letters"], tenant=tenant, **asdict(wanted), state=state)
        return int(row["letters"]) if row else 0

    async def get(self, tenant: str, letter: UUID) -> Row | None:
        """All about one (columns of `get_dead_letter`), or None."""
        return await self.database.fetchrow(SQL["get_dead_letter"], id=letter, tenant=tenant)

    async def discard(self, tenant: str, letter: UUID, reason: str) -> bool:
        """Discard an open dead letter; whether it was open."""
        row = await self.database.fetchrow(SQL["discard_dead_letter"], id=letter, tenant=tenant, reason=reason)
        return row is not None

    # Replays ---------------------------------------------------------------------------------------------------------

    async def replay(self, tenant: str, letter: UUID, payload: str | None) -> Replayed | None:
        """Replay the task of a dead letter, with `payload` (JSON text) in place of its own if given.

        None: the dead letter is not open, or its task is not dead at the same version.
        """
        row = await self.database.fetchrow(
            SQL["replay_dead_letters"],
            letters=[letter],
            tenant=tenant,
            payload=payload,
            bulk=None,
            batch=None,
            cursor_at=None,
            cursor_id=None,
            last=False,
            note="" if payload is None else EDITED,
        )
        return Replayed(**row) if row else None

    async def replay_as(self, tenant: str, letter: UUID, repaired: Submission, *, edited: bool) -> Replayed | None:
        """Replay a dead letter that has no task (any more) as the new task `repaired`.

        None: the dead letter is not open, or it has a task.
        """
        row = await self.database.fetchrow(
            SQL["replay_as_new_task"],
            letter=letter,
            tenant=tenant,
            id=repaired.id,
            type=repaired.type,
            payload=repaired.payload,
            max_attempts=repaired.max_attempts,
            traceparent=repaired.traceparent,
            edited=edited,
        )
        return Replayed(**row) if row else None

    async def start_bulk(self, tenant: str, replay: UUID, wanted: DeadLetterFilter, rate: float) -> Row:
        """Request a bulk replay of the `wanted` open dead letters, at `rate` a second: id, matched, status."""
        row = await self.database.fetchrow(
            SQL["start_bulk_replay"], id=replay, tenant=tenant, **asdict(wanted), filter=to_text(wanted), rate=rate
        )
        assert row is not None
        return row

    async def get_bulk(self, tenant: str, replay: UUID) -> Row | None:
        """A bulk replay (columns of `get_bulk_replay`), or None."""
        return await self.database.fetchrow(SQL["get_bulk_replay"], id=replay, tenant=tenant)

    async def bulk_outcomes(self, replay: UUID) -> Mapping[str, int]:
        """Outcome, or present state → how many of the tasks that it replayed."""
        rows = await self.database.fetch(SQL["bulk_replay_outcomes"], id=replay)
        return {row["outcome"]: row["letters"] for row in rows}

    async def stop_bulk(self, tenant: str, replay: UUID) -> bool:
        """Stop a bulk replay at once; whether it was running."""
        return await self.database.fetchrow(SQL["stop_bulk_replay"], id=replay, tenant=tenant) is not None

    async def running_bulk(self) -> Sequence[BulkReplay]:
        """Bulk replays that are running, the oldest first."""
        rows = await self.database.fetch(SQL["running_bulk_replays"], limit=MOST_BULK_REPLAYS)
        return [BulkReplay(**{**row, "filter": from_text(row["filter"])}) for row in rows]

    async def carry_on(self, bulk: BulkReplay, limit: int) -> tuple[int, Sequence[Replayed]]:
        """Replay the next dead letters of `bulk`, at most `limit`: how many were read, and which were replayed.

        A second process that carries on the same batch at the same time changes nothing. If less than `limit`, or all
        of its `rest`, were read, it has ended.
        """
        limit = min(limit, bulk.rest)
        letters = await self.database.fetch(
            SQL["next_of_bulk_replay"],
            tenant=bulk.tenant,
            **asdict(bulk.filter),
            asked_at=bulk.created_at,
            cursor_at=bulk.cursor_at,
            cursor_id=bulk.cursor_id,
            limit=limit,
        )
        last = letters[-1] if letters else None
        rows = await self.database.fetch(
            SQL["replay_dead_letters"],
            letters=[row["id"] for row in letters],
            tenant=bulk.tenant,
            payload=None,
            bulk=bulk.id,
            batch=bulk.batch,
            cursor_at=last["created_at"] if last else None,
            cursor_id=last["id"] if last else None,
            last=len(letters) < limit or len(letters) == bulk.rest,
            note=f"bulk replay: {bulk.id}",
        )
        return len(letters), [Replayed(**row) for row in rows]


def _reduced(letter: DeadLetter, refusal: RefusedData) -> DeadLetter:
    """`letter` with only its names and numbers, and a reason that says what was left out."""
    headers = sum(len(name) + len(value or b"") for name, value in letter.record_headers)
    sizes = {"key": len(letter.record_key or b""), "value": len(letter.record_value or b""), "headers": headers}
    left_out = ", ".join(f"{part} ({size:,} bytes)" for part, size in sizes.items() if size) or "its trace"
    return letter._replace(
        reason=f"{letter.reason[:500]} ({refusal}, so this was left out: {left_out})",
        traceparent=None,
        record_key=None,
        record_value=None,
        record_headers=(),
    )


def _origin(origin: Mapping[str, object]) -> str:
    return json.dumps({**origin, "topic": indexed(str(origin["topic"]))})


def _headers(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    if not headers:
        return None
    return json.dumps(
        [[name, None if value is None else base64.b64encode(value).decode("ascii")] for name, value in headers]
    )


MOST_GROUPS: Final = 500
OPEN: Final = "open"


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters: those that match every field that is not None. `created_before` is exclusive."""

    type: str | None = None
    error_class: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    origin_topic: str | None = None

    @property
    def empty(self) -> bool:
        """Whether it matches every dead letter."""
        return not any(asdict(self).values())


class Place(NamedTuple):
    """The position of a dead letter in the order of the list: a page begins behind one."""

    created_at: datetime
    id: UUID


MOST_BULK_REPLAYS: Final = 100
"""Bulk replays that run at once; others wait until one of them ends."""

EDITED: Final = "edited payload"


class Replayed(NamedTuple):
    """A dead letter was replayed as this task."""

    letter: UUID
    task_id: UUID
    type: str
    error_class: str
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class BulkReplay:
    """A bulk replay that is running.

    `allowance` is how many dead letters its rate allows now; `rest` is how many of those that existed when it was
    requested it has not read yet: times alone would find more of them after the clock was set back.
    """

    id: UUID
    tenant: str
    filter: DeadLetterFilter
    batch: int
    cursor_at: datetime | None
    cursor_id: UUID | None
    created_at: datetime
    allowance: int
    rest: int


_NAMES: Final = {
    "taskType": "type",
    "errorClass": "error_class",
    "createdAfter": "created_after",
    "createdBefore": "created_before",
    "originTopic": "origin_topic",
}


def to_text(wanted: DeadLetterFilter) -> str:
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


def from_text(text: str) -> DeadLetterFilter:
    """The filter that `to_text` wrote."""
    given: dict[str, Any] = {_NAMES[name]: value for name, value in json.loads(text).items()}
    for field in ("created_after", "created_before"):
        if field in given:
            given[field] = datetime.fromisoformat(given[field])
    return DeadLetterFilter(**given)
