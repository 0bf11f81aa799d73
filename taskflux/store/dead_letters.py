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
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from taskflux.store.database import Database, Row, statements
from taskflux.store.errors import RefusedData
from taskflux.store.group_commit import GroupCommit
from taskflux.store.texts import LONGEST_INDEXED, indexed, storable
from taskflux.tasks.causes import cause_of
from taskflux.tasks.model import Submission
from taskflux.telemetry import metrics, tracing
from taskflux.telemetry.tracing import UNTRACED, Destination

log = logging.getLogger(__name__)

SQL: Final = statements("dead_letters")
BY_HAND: Final = "it was stopped by hand"


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
        classes = [indexed(letter.error_class) for letter in letters]
        reasons = [storable(letter.reason) for letter in letters]
        causes = [
            None if letter.task_id else cause_of(error_class, reason).fingerprint
            for letter, error_class, reason in zip(letters, classes, reasons, strict=True)
        ]
        rows = await self.database.fetch(
            SQL["add_dead_letters"],
            ids=[letter.id for letter in letters],
            identities=[letter.identity for letter in letters],
            task_ids=[letter.task_id for letter in letters],
            task_versions=[letter.task_version for letter in letters],
            types=[letter.type and indexed(letter.type) for letter in letters],
            error_classes=classes,
            reasons=reasons,
            attempts=[letter.attempts for letter in letters],
            traceparents=[letter.traceparent for letter in letters],
            origins=[_origin(letter.origin) for letter in letters],
            record_keys=[letter.record_key for letter in letters],
            record_values=[letter.record_value for letter in letters],
            record_headers=[_headers(letter.record_headers) for letter in letters],
            causes=causes,
            least=min(tasks, default=None),
            greatest=max(tasks, default=None),
            longest=LONGEST_INDEXED,
        )
        await self._set_causes([row for row in rows if row["reason"] is not None])
        return {row["id"]: row["error_class"] for row in rows}

    async def backfill_causes(self, limit: int) -> int:
        """Compute causes that are missing, of at most `limit` dead letters and as many held or dead tasks; how many.

        They are from before there were causes, or from a process of the release before.
        """
        letters = await self.database.fetch(SQL["letters_without_cause"], limit=limit)
        await self._set_causes(letters)
        parked = await self.database.fetch(SQL["parked_without_cause"], limit=limit)
        if parked:
            await self.database.fetch(
                SQL["set_parked_causes"],
                **_causes(parked),
                versions=[row["version"] for row in sorted(parked, key=itemgetter("id"))],
            )
        return len(letters) + len(parked)

    async def _set_causes(self, rows: Sequence[Row]) -> None:
        if rows:
            await self.database.fetch(SQL["set_causes"], **_causes(rows))

    async def forget_counts(self) -> None:
        """Delete the counts of groups that have no dead letters any more, and old images of handlers."""
        await self.database.fetch(SQL["forget_counts"], images=MOST_IMAGES)

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

    async def groups(self, tenant: str, wanted: DeadLetterFilter, state: str | None) -> Groups:
        """How many there are by type and cause: the `MOST_GROUPS` largest groups, and the sum of the others."""
        filters, by_counts = asdict(wanted), wanted.by_counts
        if by_counts:
            filters = {name: filters[name] for name in ("type", "error_class", "cause")}
        counted = await self.database.fetch(
            SQL["groups_of_dead_letters" if by_counts else "groups_looked_at"],
            tenant=tenant,
            **filters,
            state=state,
            limit=MOST_GROUPS,
        )
        if not counted:
            return Groups([], 0, 0)
        kinds = {"types": [row["type"] for row in counted], "causes": [row["cause"] for row in counted]}
        about = await self.database.fetch(SQL["about_groups"], tenant=tenant, state=state, **kinds)
        trends: dict[tuple[str | None, str], list[int]] = {}
        for row in await self.database.fetch(
            SQL["trend_of_causes"], tenant=tenant, causes=kinds["causes"], hours=TREND_HOURS
        ):
            trend = trends.setdefault((row["type"], row["cause"]), [0] * TREND_HOURS)
            trend[-1 - row["hours_ago"]] = row["letters"]
        images: dict[str, list[Image]] = {}
        types = [each for each in kinds["types"] if each]
        for row in await self.database.fetch(SQL["images_of_handlers"], types=types):
            images.setdefault(row["type"], []).append(Image(row["image"], row["since"]))
        groups = [
            _group(row, told, trends.get((row["type"], row["cause"])), images.get(row["type"], ()))
            for row, told in zip(counted, about, strict=True)
        ]
        others = counted[0]["all_letters"] - sum(row["letters"] for row in counted)
        return Groups(groups, counted[0]["all_groups"] - len(groups), others)

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

    async def start_bulk(
        self, tenant: str, job: UUID, wanted: DeadLetterFilter, rate: float, plan: Plan | None = None
    ) -> Row:
        """Request a job on the `wanted` open dead letters: id, matched, status, action. Replays are at `rate` a second.

        Without a plan, nobody is named, and there is neither a canary nor a limit of failures.
        """
        plan = plan or Plan()
        row = await self.database.fetchrow(
            SQL["start_bulk_replay"],
            id=job,
            tenant=tenant,
            **asdict(wanted),
            filter=to_text(wanted),
            rate=rate,
            **asdict(plan),
        )
        assert row is not None
        return row

    async def recent_throughput(self, task_type: str) -> float:
        """How many tasks of a type have ended a second, over the last minute."""
        row = await self.database.fetchrow(SQL["recent_throughput"], type=task_type, look=NEWEST)
        return float(row["rate"]) if row else 0.0

    async def get_bulk(self, tenant: str, job: UUID) -> Row | None:
        """A job (columns of `get_bulk_replay`), or None."""
        return await self.database.fetchrow(SQL["get_bulk_replay"], id=job, tenant=tenant)

    async def list_bulk(self, tenant: str, behind: UUID | None, limit: int) -> Sequence[Row]:
        """At most `limit` jobs, newest first."""
        return await self.database.fetch(SQL["list_bulk_replays"], tenant=tenant, behind=behind, limit=limit)

    async def bulk_outcomes(self, job: UUID) -> Mapping[str, int]:
        """Outcome, or present state → how many of the tasks that it replayed."""
        rows = await self.database.fetch(SQL["bulk_replay_outcomes"], id=job)
        return {row["outcome"]: row["letters"] for row in rows}

    async def new_causes(self, job: UUID) -> Mapping[str, int]:
        """Causes of tasks that died again, if none of the job's dead letters had them → how many."""
        rows = await self.database.fetch(SQL["new_causes_of_bulk"], id=job)
        return {row["cause"]: row["letters"] for row in rows}

    async def stop_bulk(self, tenant: str, job: UUID, because: str = BY_HAND) -> bool:
        """Stop a job at once; whether it was under way."""
        row = await self.database.fetchrow(SQL["stop_bulk_replay"], id=job, tenant=tenant, because=because)
        return row is not None

    async def running_bulk(self) -> Sequence[BulkReplay]:
        """Jobs that are under way, the oldest first."""
        rows = await self.database.fetch(SQL["running_bulk_replays"], limit=MOST_BULK_REPLAYS)
        return [BulkReplay(**{**row, "filter": from_text(row["filter"])}) for row in rows]

    async def recent_of_bulk(self, job: UUID, most: int, judged: int) -> tuple[int, int]:
        """Of the last `most` replays of a job: how many have no outcome yet; and the failures of the last `judged`."""
        row = await self.database.fetchrow(SQL["recent_of_bulk"], id=job, most=most, judged=judged)
        assert row is not None
        return row["under_way"], row["failed"]

    async def canary_of_bulk(self, job: UUID) -> Sequence[bool | None]:
        """Whether each replay of a job's canary went well; None: that is not known yet.

        A retry with the cause that it died of is a failure. One with another cause decides nothing yet.
        """
        return [_went_well(row) for row in await self.database.fetch(SQL["canary_of_bulk"], id=job)]

    async def pass_canary(self, job: UUID) -> None:
        """Go on with the rest."""
        await self.database.fetch(SQL["pass_canary"], id=job)

    async def carry_on(self, bulk: BulkReplay, limit: int) -> tuple[bool, Sequence[Replayed]]:
        """Replay or discard the next dead letters of `bulk`, at most `limit`: whether it has ended; which it replayed.

        A second process that carries on the same batch at the same time changes nothing.
        """
        limit = min(limit, bulk.rest)
        if bulk.status == "canary":
            limit = min(limit, bulk.canary - bulk.replayed)
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
        ended = len(letters) < limit or len(letters) == bulk.rest
        batch = {
            "letters": [row["id"] for row in letters],
            "tenant": bulk.tenant,
            "bulk": bulk.id,
            "batch": bulk.batch,
            "cursor_at": last["created_at"] if last else None,
            "cursor_id": last["id"] if last else None,
            "last": ended,
        }
        if bulk.status == "discarding":
            await self.database.fetch(SQL["discard_of_bulk"], **batch)
            return ended, []
        rows = await self.database.fetch(
            SQL["replay_dead_letters"], **batch, payload=None, note=f"bulk replay: {bulk.id}"
        )
        return ended, [Replayed(**row) for row in rows]


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


def _causes(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The ids of these in their order, and the cause of each."""
    ordered = sorted(rows, key=itemgetter("id"))
    return {
        "ids": [row["id"] for row in ordered],
        "causes": [cause_of(row["error_class"], row["reason"]).fingerprint for row in ordered],
    }


MOST_GROUPS: Final = 200
TREND_HOURS: Final = 24
MOST_IMAGES: Final = 50
"""Images of each type's handler that are remembered."""
OPEN: Final = "open"


class Image(NamedTuple):
    """An image that a type's handler ran from, and since when."""

    name: str
    since: datetime


class Change(NamedTuple):
    """The images of a type's handler around a moment: the one that ran then, the one before it, and the latest one."""

    then: Image
    before: Image | None
    latest: Image

    @classmethod
    def around(cls, moment: datetime, images: Sequence[Image]) -> Change | None:
        """Of these, in their order; None where none of them is known to have run then."""
        ran = [image for image in images if image.since <= moment]
        return cls(ran[-1], ran[-2] if len(ran) > 1 else None, images[-1]) if ran else None


class Group(NamedTuple):
    """Dead letters of one type and one cause.

    `oldest` and `newest` are of those that match the filter; `first_seen` and `last_seen` of all that are kept, and so
    is `trend`: how many came in each of the last `TREND_HOURS`, this one last. For a moment after an upgrade, `cause`
    and what follows from it are None. `sample` is the newest one's id.
    """

    type: str | None
    error_class: str
    cause: str | None
    letters: int
    oldest: datetime | None
    newest: datetime | None
    first_seen: datetime | None
    last_seen: datetime | None
    sample: UUID | None
    reason: str | None
    trend: Sequence[int]
    change: Change | None


class Groups(NamedTuple):
    """The largest groups, and how many groups and dead letters there are beside them."""

    groups: Sequence[Group]
    other_groups: int
    other_letters: int

    @property
    def letters(self) -> int:
        """How many dead letters there are in all."""
        return sum(group.letters for group in self.groups) + self.other_letters


def _group(counted: Row, about: Row, trend: Sequence[int] | None, images: Sequence[Image]) -> Group:
    first_seen = about["first_seen"]
    return Group(
        counted["type"],
        counted["error_class"],
        counted["cause"],
        counted["letters"],
        counted["oldest"] or about["oldest"],
        counted["newest"] or about["newest"],
        first_seen,
        about["last_seen"],
        about["sample"],
        about["reason"],
        trend or [0] * TREND_HOURS,
        None if first_seen is None else Change.around(first_seen, images),
    )


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters: those that match every field that is not None. `created_before` is exclusive."""

    type: str | None = None
    error_class: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    origin_topic: str | None = None
    cause: str | None = None

    @property
    def by_counts(self) -> bool:
        """Whether the counts by type, class, cause and state have all that it asks for."""
        return self.created_after is None and self.created_before is None and self.origin_topic is None

    @property
    def empty(self) -> bool:
        """Whether it matches every dead letter."""
        return not any(asdict(self).values())


class Place(NamedTuple):
    """The position of a dead letter in the order of the list: a page begins behind one."""

    created_at: datetime
    id: UUID


NEWEST: Final = 5_000
"""Tasks that are looked at for a type's recent throughput."""
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
    status: str = "running"
    replayed: int = 0
    canary: int = 0
    most_failures: float | None = None
    overdue: bool = False
    """Whether the canary's outcomes take longer than they may."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a job is done, and for whom.

    Args:
        who: who has started it, in their own words.
        reason: why these dead letters need no replay: the job discards them. None: it replays them.
        canary: how many are replayed first; the rest follows once their first attempts went well.
        canary_seconds: how long those may take; then the job is stopped.
        most_failures: the share of failures, of the last 100 outcomes and of the canary, that stops the job if it is
            exceeded.
    """

    who: str | None = None
    reason: str | None = None
    canary: int = 0
    canary_seconds: float = 300.0
    most_failures: float | None = None


def _went_well(row: Row) -> bool | None:
    if row["replayed_again"] or row["state"] in ("dead", "uncertain"):
        return False
    if row["state"] is None or row["state"] in ("succeeded", "cancelled"):
        return True
    again = row["error_class"] is not None  # the replay has cleared it
    same = again and cause_of(row["error_class"], row["error_reason"]).fingerprint == row["cause"]
    return False if same else None


_NAMES: Final = {
    "taskType": "type",
    "errorClass": "error_class",
    "createdAfter": "created_after",
    "createdBefore": "created_before",
    "originTopic": "origin_topic",
    "cause": "cause",
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
