"""Tasks: accepting, reading and listing them, deciding about one, and registered types."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import UUID

from taskflux.store.database import Database, Row, Statement, shared, statements
from taskflux.store.errors import OtherDeclaration, RefusedData, StoreBusy, StoreError
from taskflux.store.group_commit import GroupCommit
from taskflux.store.texts import note, storable
from taskflux.tasks.model import Accepted, KeyReused, Submission, TaskType
from taskflux.tasks.states import Event, State
from taskflux.telemetry import tracing
from taskflux.telemetry.tracing import UNTRACED

SQL: Final = statements("tasks")
MOST_AHEAD: Final = 100_000
NEWEST: Final = 5_000
"""How many tasks before a task are looked at, and how many of its type on each side of the first that waits."""
PATIENCE: Final = 2.0
"""Seconds that a submission waits while PostgreSQL is unavailable."""
SEARCH: Final = 10.0
"""Seconds that the search for a page may take before it has found anything."""
INSERT_BATCH: Final = 500
WINDOW: Final = 0.002
"""Seconds that submissions of many clients may wait for each other."""
INSERT: Final = tracing.Operation(
    "insert tasks",
    "CLIENT",
    {**tracing.POSTGRES, "db.operation.name": "INSERT", "db.collection.name": "tasks"},
    "db.operation.batch.size",
)


class ForeignTask(NamedTuple):
    """A task that another producer wrote. Two with the same `identity` are the same task; `id` is used if it is new.

    `delay` is in seconds from the store's now; `metadata` is a JSON text.
    """

    identity: str
    digest: bytes
    id: UUID
    type: str
    payload: str
    max_attempts: int
    traceparent: str
    key: str | None = None
    schedule_at: datetime | None = None
    delay: float = 0.0
    expires_at: datetime | None = None
    metadata: str | None = None

    @property
    def waits(self) -> bool:
        """Whether it may be due later than it is accepted."""
        return self.schedule_at is not None or self.delay > 0


class Known(NamedTuple):
    """The task stored under an identity, and the digest of its payload.

    `fresh`: it was created just now; `due_now`: it can run at once, too.
    """

    task: UUID
    digest: bytes
    fresh: bool = False
    due_now: bool = False


class Tasks:
    """The table of tasks.

    `grace` is how long, in seconds, the relay leaves a new task alone because its submitter promised to publish it;
    0 leaves publishing to the relay.

    A `page` of the list, newest first, is fast at any depth of any table. There is no index on the state: every
    transition would have to write to it, and no update would be HOT. So each filter is answered from a table or index
    that exists anyway, or over columns that never change:

    =========================== =====================================================================================
    a key                       a partial index; no key, no entry
    metadata of a declared key  a partial index for each key (`TASKFLUX_POSTGRES__METADATA_KEYS`)
    `scheduled` `queued`        `due`, the outbox: a task is there until a worker claims it
    `running`                   `claims`
    `dead` `uncertain`          `parked`, which a trigger fills; only transitions from or to one of the three write to
    `cancelled`                 it
    a type                      an index
    anything else               the primary key, whose order is time: `succeeded` is most of the table
    =========================== =====================================================================================

    Other filters are applied to the rows found there.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        # One for each grace, since a statement takes only one.
        self._inserts: dict[float, GroupCommit[Submission, Accepted | KeyReused]] = {}

    def accept(self, submission: Submission, grace: float) -> asyncio.Future[Accepted | KeyReused]:
        """Make `submission` durable, with those that come together. Raises StoreUnavailable, RefusedData."""
        return self._group(grace).submit(submission, submission.unique)

    async def accept_all(
        self, submissions: Sequence[Submission], grace: float
    ) -> Sequence[Accepted | KeyReused | StoreError]:
        """Make all of them durable, in one statement unless a key occurs twice; the outcome or the error of each."""
        return await self._group(grace).submit_each(submissions, [each.unique for each in submissions])

    def _group(self, grace: float) -> GroupCommit[Submission, Accepted | KeyReused]:
        group = self._inserts.get(grace)
        if group is None:
            insert = partial(self.insert, grace=grace)
            group = self._inserts[grace] = GroupCommit(
                insert, max_items=INSERT_BATCH, patience=PATIENCE, statement="insert", window=WINDOW
            )
        return group

    async def insert(self, submissions: Sequence[Submission], grace: float) -> Sequence[Accepted | KeyReused]:
        """Make all of them durable in one statement; one outcome for each.

        Each `unique` of a submission occurs once among them. It may be called again with the same submissions after an
        error (a StoreError: nothing is known to be written): what was written then is recognized.
        """
        with tracing.batch(INSERT, [each.traceparent for each in submissions]) if tracing.on else UNTRACED:
            if not any(each.idempotency for each in submissions):
                try:
                    return await self._insert_new(submissions, grace)
                except RefusedData as error:
                    if not error.exists:
                        raise
            return await self._insert_keyed(submissions, grace)

    async def _insert_new(self, submissions: Sequence[Submission], grace: float) -> Sequence[Accepted]:
        row = await self.database.fetchrow(SQL["insert_tasks"], **_columns(submissions), grace=grace)
        assert row is not None
        at, later = row["created_at"], frozenset(row["later"])
        return [Accepted(each.id, each.type, at, False, grace > 0 and each.id not in later) for each in submissions]

    async def _insert_keyed(self, submissions: Sequence[Submission], grace: float) -> Sequence[Accepted | KeyReused]:
        keys = [each.idempotency for each in submissions]
        rows = await self.database.fetch(
            SQL["insert_keyed"],
            **_columns(submissions),
            idempotency_keys=_given([key and key.key for key in keys]),
            digests=_given([key and key.digest for key in keys]),
            ttls=_given([key and key.ttl for key in keys]),
            grace=grace,
        )
        made = {row["id"]: row for row in rows}
        outcomes = [
            None
            if (row := made.get(each.id)) is None
            else Accepted(each.id, each.type, row["created_at"], False, grace > 0 and row["due_now"])
            for each in submissions
        ]
        missing = [each for each in submissions if each.id not in made]
        others = await self._answer_missing(missing) if missing else {}
        if len(others) < len(missing):
            raise StoreBusy("an idempotency key expired while it was looked up")
        return [outcome or others[each.id] for each, outcome in zip(submissions, outcomes, strict=True)]

    async def _answer_missing(self, missing: Sequence[Submission]) -> dict[UUID, Accepted | KeyReused]:
        """What was not inserted repeats a key, or was written by an earlier try whose answer was lost."""
        answers: dict[UUID, Accepted | KeyReused] = {}
        keyed = {(s.tenant, s.idempotency.key): s for s in missing if s.idempotency}
        if keyed:
            tenants, keys = zip(*keyed, strict=True)
            for row in await self.database.fetch(SQL["find_keys"], tenants=tenants, keys=keys):
                submission = keyed[row["tenant"], row["key"]]
                answers[submission.id] = _repeat(submission, row)
        unkeyed = sorted(s.id for s in missing if not s.idempotency)
        if unkeyed:
            types = {s.id: s.type for s in missing}
            for row in await self.database.fetch(
                SQL["find_created"], ids=unkeyed, least=unkeyed[0], greatest=unkeyed[-1]
            ):
                # The earlier try promised to publish it; the relay does so if nothing else does.
                answers[row["id"]] = Accepted(row["id"], types[row["id"]], row["created_at"])
        return answers

    async def register(self, batch: Sequence[ForeignTask], grace: float) -> Mapping[str, Known]:
        """Insert a row for each that has none yet; return what is stored under each identity.

        New ones that are due now are left to the caller for `grace` seconds, at version 1. Each identity occurs once in
        a batch. After a StoreError nothing is known to be written: the call can be repeated with the same batch.
        """
        rows = await self.database.fetch(
            SQL["adopt"],
            identities=[each.identity for each in batch],
            digests=[each.digest for each in batch],
            ids=[each.id for each in batch],
            types=[each.type for each in batch],
            payloads=[each.payload for each in batch],
            max_attempts=[each.max_attempts for each in batch],
            traceparents=[each.traceparent for each in batch],
            keys=[each.key for each in batch],
            schedule_at=[each.schedule_at for each in batch],
            delays=[each.delay for each in batch],
            expires_at=[each.expires_at for each in batch],
            metadata=[each.metadata for each in batch],
            grace=grace,
        )
        made = {row["id"]: row["due_now"] for row in rows}
        known = {
            each.identity: Known(each.id, each.digest, fresh=True, due_now=made[each.id])
            for each in batch
            if each.id in made
        }
        others = [each.identity for each in batch if each.identity not in known]
        if others:
            for row in await self.database.fetch(SQL["find_foreign"], identities=others):
                known[row["identity"]] = Known(row["task_id"], row["digest"])
        return known

    async def get(self, task: UUID, tenant: str) -> Row | None:
        """The row of a task, or None."""
        return await self.database.fetchrow(SQL["get_task"], id=task, tenant=tenant)

    async def why(self, task: UUID, task_type: str) -> Row:
        """What a waiting task may wait for (columns of `why_it_waits`)."""
        about = {"id": task, "type": task_type, "most": MOST_AHEAD, "newest": NEWEST}
        return await self.database.fetchrow(SQL["why_it_waits"], **about)

    async def page(self, tenant: str, wanted: TaskFilter, limit: int, after: UUID | None = None) -> Page:
        """Up to `limit` tasks older than the task `after`, newest first. A short page need not be the last.

        Raises:
            SearchTooLong: none was found in `SEARCH` seconds, and there is more to search.
            StoreError: as for every statement.
        """
        find, further = _finder(wanted, limit, await self._built_indexes(wanted))
        below, start = _bounds(wanted, after)
        filters: dict[str, object] = {"tenant": tenant, "type": wanted.type}
        filters |= {"created_from": wanted.created_from, "created_before": wanted.created_before}
        given_up_at = monotonic() + SEARCH
        while True:
            values = {**filters, **further, "below": below, "start": start, "look": LOOK}
            seen = await self.database.fetchrow(find, **{name: values[name] for name in find.parameters})
            assert seen is not None
            ids = sorted(seen["ids"])
            found = ids and await self.database.fetch(
                SQL["list_found"], ids=ids, least=ids[0], greatest=ids[-1], state=wanted.state, limit=limit, **filters
            )
            following = found[-1]["id"] if len(found) == limit else seen["ended"]
            rows = [row for row in found if _has(row["metadata"], wanted.metadata)]
            if rows or following is None:
                return Page(rows, following)
            if monotonic() >= given_up_at:
                indexed = wanted.key is not None or find is SQL["find_by_metadata"]
                raise SearchTooLong(following, () if indexed else wanted.metadata)
            below = following

    async def _built_indexes(self, wanted: TaskFilter) -> frozenset[str]:
        """The complete indexes of tasks, if they matter."""
        if wanted.key is not None or (not wanted.metadata and (wanted.type is None or wanted.state in _NARROW)):
            return frozenset()
        return frozenset(row["name"] for row in await self.database.fetch(SQL["built_indexes"]))

    async def cancel(self, task: UUID, tenant: str, reason: str | None = None) -> bool:
        """Cancel a waiting task; false if it does not wait (any more)."""
        return await self.database.fetchrow(SQL["cancel"], id=task, tenant=tenant, note=note(reason)) is not None

    async def resolve(self, task: UUID, tenant: str | None, resolution: Resolution, reason: str | None = None) -> bool:
        """Decide about an uncertain task of `tenant` (None: of any); false if it is not uncertain (any more).

        `reason` goes into the timeline, and becomes the reason of the dead letter if there will be one; the error class
        stays the same.
        """
        event, state = _FOLLOWS[resolution]
        kept = None if reason is None else storable(reason)
        row = await self.database.fetchrow(
            SQL["resolve"],
            id=task,
            tenant=tenant,
            state=state.value,
            event=event.value,
            reason=kept,
            note=note(reason),
        )
        return row is not None


def _columns(submissions: Sequence[Submission]) -> dict[str, object]:
    """What both statements that insert take of each submission."""
    return {
        **shared(
            tenant=[each.tenant for each in submissions],
            type=[each.type for each in submissions],
            budget=[each.max_attempts for each in submissions],
            traceparent=[each.traceparent for each in submissions],
        ),
        "ids": [each.id for each in submissions],
        "payloads": [each.payload for each in submissions],
        "keys": _given([each.key for each in submissions]),
        "schedule_at": _given([each.schedule_at for each in submissions]),
        "delays": _given([each.delay for each in submissions]),
        "expires_at": _given([each.expires_at for each in submissions]),
        "metadata": _given([each.metadata for each in submissions]),
    }


def _given(values: list[Any]) -> list[Any]:
    """A column as `unnest` takes it: with none of the values, it fills the column with NULL, at no cost."""
    return values if any(values) else []


def _repeat(submission: Submission, row: Row) -> Accepted | KeyReused:
    key = submission.idempotency
    assert key is not None
    if row["digest"] != key.digest:
        return KeyReused(key.key)
    return Accepted(row["task_id"], row["type"], row["created_at"], repeated=row["task_id"] != submission.id)


LOOK: Final = 20_000
"""Rows that one statement reads."""
LOOK_CLOSELY: Final = 2_000
"""Tasks that are read if what finds them does not know the answer."""
FEW: Final = 5_000
"""Waiting tasks of which all are read."""
APART: Final = 10.0
"""Seconds that an id's time (of ingest's clock) may differ from `created_at` (PostgreSQL's) for a list to be exact."""

_NARROW: Final = frozenset({*State} - {State.SUCCEEDED})
_MOVING: Final = (State.SCHEDULED, State.QUEUED, State.RUNNING)
TYPE_INDEX: Final = "tasks_by_type"
METADATA_INDEX: Final = "tasks_by_metadata_"
FIRST_ID: Final = UUID(int=0)

_LAST_ID: Final = UUID(int=(1 << 128) - 1)
_LITERAL: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks: None and an empty mapping match all. `created_from` ≤ created < `created_before`.

    `metadata` is name → value of top-level members: a value is written as in JSON, a text without its quotes.
    """

    state: State | None = None
    type: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    key: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class Page(NamedTuple):
    """Rows as `get_task` has them, without payload and timeline; `after` ends it (None: there is no next page)."""

    rows: Sequence[Row]
    after: UUID | None


class SearchTooLong(Exception):
    """Nothing was found in time: none of the tasks accepted after `since` fits.

    `not_indexed` are the members of metadata that were asked for, if none of them is a declared key.
    """

    def __init__(self, reached: UUID, not_indexed: Collection[str]) -> None:
        super().__init__("a search took too long")
        self.since = datetime.fromtimestamp((reached.int >> 80) / 1000 + APART, UTC)
        self.not_indexed = not_indexed


def uuid_floor(moment: datetime, seconds: float = 0.0) -> UUID:
    """The least UUIDv7 of the millisecond `seconds` after `moment`; before 1970, the least of all."""
    return UUID(int=max(0, int((moment.timestamp() + seconds) * 1000)) << 80)


def _finder(wanted: TaskFilter, limit: int, built: Collection[str]) -> tuple[Statement, Mapping[str, object]]:
    """The statement that finds what a filter asks for, and its parameters beside those of every list."""
    state, metadata = wanted.state, wanted.metadata
    quoted, bare = _needles(metadata)
    timed = wanted.created_from is not None or wanted.created_before is not None
    moving = state in _MOVING  # then the wide row alone does not know the state
    states = None if state is None else list(_MOVING) if moving else [state]
    walk = {"states": states, "quoted": quoted, "bare": bare, "most": max(limit, LOOK_CLOSELY) if moving else limit}
    if wanted.key is not None:
        return SQL["find_by_key"], {**walk, "key": wanted.key}
    declared = next((name for name in metadata if METADATA_INDEX + name in built), None)
    if declared is not None:
        most = limit if state is None and wanted.type is None and len(metadata) == 1 and not timed else LOOK_CLOSELY
        document = json.dumps({declared: metadata[declared]})
        return SQL["find_by_metadata"], {"name": declared, "document": document, "most": max(limit, most)}
    if state in _NARROW:
        narrow = {"state": state, "most": max(limit, LOOK_CLOSELY) if metadata or timed else limit}
        if state in (State.SCHEDULED, State.QUEUED):
            return SQL["find_waiting"], {**narrow, "queued": state == State.QUEUED, "few": FEW}
        return SQL["find_narrow"], narrow
    if wanted.type is not None and TYPE_INDEX not in built:
        return SQL["find_recent"], walk
    if state == State.SUCCEEDED and not metadata:
        return SQL["find_beyond_due"], {"most": 4 * limit}
    return SQL["find_recent" if wanted.type is None else "find_by_type"], walk


def _bounds(wanted: TaskFilter, after: UUID | None) -> tuple[UUID, UUID]:
    """The ids below and from which to look: the range of creation times, as far as ids show them."""
    below, start = after or _LAST_ID, FIRST_ID
    if wanted.created_before is not None:
        below = min(below, uuid_floor(wanted.created_before, APART))
    if wanted.created_from is not None:
        start = uuid_floor(wanted.created_from, -APART)
    return below, start


def _needles(metadata: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Texts that the JSON of matching metadata must contain, each in one of two forms: the statement skips the rest."""
    quoted, bare = [], []
    for name, value in metadata.items():
        member = json.dumps(name) + ":"
        quoted.append(member + json.dumps(value))
        bare.append(member + (value if _LITERAL.fullmatch(value) else json.dumps(value)))
    return quoted, bare


def _has(text: str | None, metadata: Mapping[str, str]) -> bool:
    if not metadata:
        return True
    members: dict[str, Any] = json.loads(text or "{}", parse_int=str, parse_float=str)
    return all(name in members and _written(members[name]) == value for name, value in metadata.items())


def _written(value: Any) -> str | None:
    """A member's value as a filter writes it; None if no filter can match it."""
    if isinstance(value, str):
        return value
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else None


class Resolution(StrEnum):
    """A decision about an uncertain task."""

    SUCCEEDED = "succeeded"  # its side effect did happen
    RESEND = "resend"  # try it again now, at the risk of a repeat
    DEAD = "dead"  # give it up: it becomes a dead letter


_FOLLOWS: Final = {
    Resolution.SUCCEEDED: (Event.RESOLVED_SUCCEEDED, State.SUCCEEDED),
    Resolution.RESEND: (Event.RESOLVED_RESEND, State.SCHEDULED),
    Resolution.DEAD: (Event.RESOLVED_DEAD, State.DEAD),
}


@dataclass(frozen=True, slots=True)
class TaskTypes:
    """The registered types: a type is unknown only if no worker has registered it."""

    database: Database

    async def register(self, task_type: TaskType) -> None:
        """Store a type's schema and policy; no change if they are already stored.

        Raises:
            OtherDeclaration: another function declares this type with another schema, and this one does not say that
                it replaces that.
        """
        await self.database.fetch(
            SQL["register_type"],
            type=task_type.name,
            schema=task_type.schema,
            max_attempts=task_type.max_attempts,
            ambiguous=task_type.ambiguous,
            provider=task_type.provider,
            max_bytes=task_type.max_bytes,
            declared_by=task_type.declared_by,
            replaces=task_type.replaces,
        )
        if task_type.declared_by is None or task_type.replaces:
            return
        other = await self.database.fetchrow(
            SQL["other_declaration"], type=task_type.name, schema=task_type.schema, declared_by=task_type.declared_by
        )
        if other is not None:
            raise OtherDeclaration(
                f"the task type {task_type.name!r} is declared by {other['declared_by']}, with another schema than"
                f" {task_type.declared_by} has: give one of them another type; or, to replace the other, declare this"
                " one with @handler(…, replaces=True) and stop running the other"
            )

    async def switch_off(self, name: str, handler: str) -> bool:
        """Whether a registered type is off from now on: the `handler` of its tasks runs nowhere.

        Its next registration switches it on again.
        """
        return bool(await self.database.fetch(SQL["switch_type_off"], type=name, handler=handler))

    async def all(self) -> Mapping[str, TaskType]:
        """Every registered type by name, with those that are off."""
        return {
            row["type"]: TaskType(
                row["type"],
                row["schema"],
                row["max_attempts"],
                row["ambiguous"],
                row["provider"],
                row["max_bytes"],
                off_handler=row["off_handler"],
            )
            for row in await self.database.fetch(SQL["list_types"])
        }

    async def names(self) -> Sequence[str]:
        """The names alone of every registered type."""
        return [row["type"] for row in await self.database.fetch(SQL["type_names"])]
