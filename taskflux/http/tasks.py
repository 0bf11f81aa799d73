"""Tasks over HTTP: one task, the list of tasks, and decisions of a person about one."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final, NotRequired, TypedDict
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from taskflux.http.access import only_types, principal_of
from taskflux.http.bodies import Held, beside_loop, held_by, json_answer, path_id, read_json, to_json
from taskflux.http.problems import (
    INVALID_RESOLUTION,
    UNKNOWN_TASK,
    WRONG_STATE,
    FieldError,
    Problem,
    not_valid,
    unknown_fields,
)
from taskflux.http.queries import read_task_query, task_cursor, too_rare
from taskflux.http.requests import client_of
from taskflux.store.accelerator import Accelerator
from taskflux.store.tasks import MOST_AHEAD, Resolution, SearchTooLong, Tasks
from taskflux.tasks.access import Principal, Scope
from taskflux.tasks.bounds import LARGE, check
from taskflux.tasks.fields import rfc3339
from taskflux.tasks.states import State
from taskflux.telemetry.logs import TASK
from taskflux.telemetry.tracing import link_request, trace_id


def task_document(row: Mapping[str, Any], waits_for: str | None = None, *, whole: bool = True) -> dict[str, Any]:
    """The JSON object of a task's row (columns of the query `get_task`); its payload only if it is `whole`."""
    document = task_summary(row, waits_for)
    document["payload"] = stored_json(row["payload"]) if whole else None
    if not whole:
        document["payloadHidden"] = True
    document["timeline"] = parse_timeline(row["timeline"] or (), document.get("traceId"))
    return document


def hold_stored(row: Mapping[str, Any], held: Held) -> None:
    """Hold what it takes to answer with a row that has a payload: as it was read, parsed, and written.

    Raises:
        Problem: 503, too much is in flight.
    """
    held.take(3 * len(row["payload"] or ""))


def task_summary(row: Mapping[str, Any], waits_for: str | None = None) -> dict[str, Any]:
    """The same without payload and timeline, as lists show it (columns of the queries `list_…`)."""
    error_class, expires_at = row["error_class"], row["expires_at"]
    # What the provider has reported of this replay's message. It is not an outcome of the task.
    delivery = stored_json(row.get("delivery"))
    if not isinstance(delivery, dict) or delivery.pop("replay", 0) != row["replays"]:
        delivery = None
    only_when_set = {
        "waitsFor": waits_for,
        "key": row["key"],
        "metadata": stored_json(row["metadata"]),
        "expiresAt": rfc3339(expires_at) if expires_at else None,
        "replays": row["replays"] or None,
        "delivery": delivery,
        "traceId": trace_id(row["traceparent"]) or None,
    }
    return {
        "taskId": str(row["id"]),
        "taskType": row["type"],
        "status": row["state"],
        "attempts": row["attempts"],
        "maxAttempts": row["max_attempts"],
        "retryCount": max(row["attempts"] - 1, 0),
        "losses": row["losses"],
        "createdAt": rfc3339(row["created_at"]),
        "updatedAt": rfc3339(row["updated_at"]),
        "dueAt": rfc3339(row["due_at"]),
        "result": stored_json(row["result"]),
        "error": None if error_class is None else {"class": error_class, "reason": row["error_reason"]},
        **{name: value for name, value in only_when_set.items() if value is not None},
    }


def waits_for(row: Mapping[str, Any], open_circuit: str | None, now: datetime) -> str | None:
    """What a task waits for; None where it runs or has ended.

    `open_circuit` is its type's provider, if that provider's circuit is open: then only probes are published.
    """
    match row["state"]:
        case State.SCHEDULED if row["due_at"] > now:
            return "its next attempt" if row["error_class"] else "its time"
        case State.SCHEDULED | State.QUEUED if open_circuit is not None:
            return f"the circuit of {open_circuit} to close"
        case State.SCHEDULED:
            return "the relay to publish it"
        case State.QUEUED:
            return "a worker"
        case State.UNCERTAIN:
            return "a decision"
    return None


SILENT: Final = 30.0
"""Seconds without a beat after which a worker is not counted on any more."""


def reasons(row: Mapping[str, Any], facts: Mapping[str, Any], now: datetime) -> list[dict[str, str]]:
    """Why a task is where it is, the most telling reason first: each a kind, for programs, and a sentence.

    `row` is the task's, and `facts` are what `Tasks.why` has read.
    """
    state, found = row["state"], []
    if state not in (State.SCHEDULED, State.QUEUED):
        return [_told(state, row)]
    if state == State.SCHEDULED and row["due_at"] > now:
        if row["error_class"] is None:
            return [_reason("time", f"it is scheduled for {_clock(row['due_at'])}")]
        told = f"attempt {row['attempts']} of {row['max_attempts']} failed ({row['error_class']})"
        return [_reason("retry", f"{told}, and the next one is due at {_clock(row['due_at'])}")]
    if facts["off_handler"] is not None:
        found.append(_reason("off", f"its handler {facts['off_handler']} is switched off"))
    if facts["open"]:
        why = ": ".join(each for each in (facts["error_class"], facts["reason"]) if each)
        since = f" since {_clock(facts['opened_at'])}" if facts["opened_at"] else ""
        found.append(_reason("circuit", f"the circuit of {facts['provider']} is open{since} ({why})"))
    if facts["suspect"]:
        found.append(_reason("suspect", "a worker was lost while it held this task, which runs again with few others"))
    silent = facts["seen"] is None or facts["seen"] > SILENT
    if not facts["workers"] or silent:
        ago = "ever" if facts["seen"] is None else f"for {_span(facts['seen'])}"
        found.append(_reason("no-worker", f"no worker of the type {row['type']} has been seen {ago} (is KEDA ready?)"))
    if state == State.SCHEDULED and (facts["leaderless"] is None or facts["leaderless"] > 0):
        found.append(_reason("no-relay", "no relay is running, which publishes it"))
    if facts["ahead"]:
        least = "at least " if facts["looked"] >= MOST_AHEAD else ""
        takes = f" ({least or 'about '}{_span(facts['ahead'] / facts['ended'])})" if facts["ended"] else ""
        found.append(_reason("behind", f"{least}{facts['ahead']:,} others of its type are before it{takes}"))
    return found or [
        _reason("next", "the relay publishes it next" if state == State.SCHEDULED else "a worker takes it next")
    ]


def _told(state: str, row: Mapping[str, Any]) -> dict[str, str]:
    match state:
        case State.RUNNING:
            return _reason("running", f"it does not wait: attempt {row['attempts']} of {row['max_attempts']} runs")
        case State.UNCERTAIN:
            return _reason("decision", "its side effect may have happened: a delivery report or a person decides")
        case State.DEAD:
            return _reason("ended", f"it does not wait: it is dead ({row['error_class']}), and can be replayed")
        case _:
            return _reason("ended", f"it does not wait: it is {state}")


def _reason(kind: str, text: str) -> dict[str, str]:
    return {"kind": kind, "text": text}


def _clock(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _span(seconds: float) -> str:
    """About how long: `40 seconds`, `4 minutes`, `3 hours`."""
    for size, name in ((3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= 2 * size or size == 1:
            number = max(1, round(seconds / size))
            return f"{number:,} {name}{'' if number == 1 else 's'}"
    raise AssertionError


def stored_json(text: str | None) -> Any:
    """The value of a stored JSON text; the text itself if it is not quite JSON, or out of bounds."""
    if text is None:
        return None
    try:
        check(text.encode())
        return json.loads(text, parse_float=_float, parse_constant=str)
    except ValueError:
        return text


def _float(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


class TimelineEntry(TypedDict):
    """What happened to a task: `at` is RFC 3339 in UTC, `attempt` counts from 1 (0: none was made yet).

    `times` is present only where repeats were folded, `note` only where there is one, `traceId` only where the task
    has a trace.
    """

    at: str
    event: str
    state: str
    attempt: int
    times: NotRequired[int]
    note: NotRequired[str]
    traceId: NotRequired[str]


def parse_timeline(entries: Iterable[str], trace: str | None = None) -> list[TimelineEntry]:
    """A row's timeline, oldest entry first; `trace` is the id of the task's trace.

    On the row it is an array of texts, `at|event|state|attempt|times|note`, at most 32: a full one folds repeats of
    the same cause into one entry that counts them. A note holds no `|`.

    An entry is never earlier than the one before it: a statement's time is the beginning of its transaction, which may
    have waited for the previous statement, and a clock can be set back. Folded repeats have the time of the first.

    Raises:
        ValueError: a text is not an entry.
    """
    timeline: list[TimelineEntry] = []
    latest = ""
    for text in entries:
        at, event, state, attempt, times, note = text.split("|", 5)
        if times == "1":
            at = latest = max(latest, at)
        entry: TimelineEntry = {"at": at, "event": event, "state": state, "attempt": int(attempt)}
        if times != "1":
            entry["times"] = int(times)
        if note:
            entry["note"] = note
        if trace:
            entry["traceId"] = trace
        timeline.append(entry)
    return sorted(timeline, key=itemgetter("at"))


log = logging.getLogger(__name__)

LARGEST_BODY: Final = 64 * 1024
LONGEST_REASON: Final = 1000

_NOT_CANCELLED: Final = {
    State.RUNNING: "a worker has started it",
    State.SUCCEEDED: "it has succeeded already",
    State.DEAD: "it is dead already: discard its dead letter if it should not be replayed",
    State.UNCERTAIN: "its side effect may have happened: resolve it instead",
}


@dataclass(frozen=True, slots=True)
class TaskRoutes:
    """The endpoints of tasks. Repeating a decision is harmless: nothing is done twice.

    `cache` is None where there is no Redis. `open_circuit` returns the provider of a task type, if its circuit is
    open.
    """

    tasks: Tasks
    cache: Accelerator | None
    open_circuit: Callable[[str], str | None]

    async def show(self, request: Request) -> Response:
        """A task as it stands."""
        task, principal = path_id(request, "task_id", _unknown), principal_of(request.scope)
        TASK.set(task)
        # What is cached is a whole task of any type.
        cache = self.cache if principal.may(Scope.PAYLOAD) and principal.types is None else None
        document = await cache.cached(principal.tenant, task) if cache else None
        if document is None:
            row = await self._found(task, principal)
            hold_stored(row, held_by(request.scope))
            document = await self._shown(row, principal)
            if cache and row["state"] == State.SUCCEEDED:  # the one state that never changes
                await cache.cache(principal.tenant, task, document)
        return Response(document, media_type="application/json")

    async def why(self, request: Request) -> Response:
        """Why a task waits, in sentences."""
        task = path_id(request, "task_id", _unknown)
        TASK.set(task)
        row = await self._decided(task, principal_of(request.scope))
        facts = await self.tasks.why(task, row["type"])
        found = reasons(row, facts, datetime.now(UTC))
        return json_answer({"taskId": str(task), "taskType": row["type"], "status": row["state"], "reasons": found})

    async def page(self, request: Request) -> Response:
        """A page of what the query asks for.

        It may be short and still have a `nextCursor`: a call looks at a bounded number of rows. The list has ended when
        `nextCursor` is null.
        """
        asked, principal = read_task_query(request.query_params.multi_items()), principal_of(request.scope)
        only_types(principal, asked.wanted.type)
        try:
            page = await self.tasks.page(principal.tenant, asked.wanted, asked.limit, asked.after)
        except SearchTooLong as found_none:
            raise too_rare(found_none) from None
        following = task_cursor(page.after, asked) if page.after else None
        items = [task_summary(row, self._waits_for(row)) for row in page.rows]
        return json_answer({"items": items, "nextCursor": following})

    async def cancel(self, request: Request) -> Response:
        """The cancelled task, also if it was cancelled before; 409 if it does not wait any more."""
        task, principal = path_id(request, "task_id", _unknown), principal_of(request.scope)
        TASK.set(task)
        # Reserve room for the answer first: nothing is done that cannot be answered.
        hold_stored(await self._decided(task, principal), held_by(request.scope))
        client_of(request.scope).begin()
        if await self.tasks.cancel(task, principal.tenant):
            log.info("a task was cancelled", extra={"task_id": str(task)})
        row = await self._decided(task, principal)
        if row["state"] != State.CANCELLED:
            # It may have been released since, and wait again: then the same request cancels it.
            why = _NOT_CANCELLED.get(row["state"], "it was running a moment ago: try again")
            raise _wrong_state(row, f"the task is {row['state']} and was not cancelled: {why}")
        return Response(await self._shown(row, principal), media_type="application/json")

    async def resolve(self, request: Request) -> Response:
        """The task after the decision; 409 where there was nothing to decide."""
        task, principal = path_id(request, "task_id", _unknown), principal_of(request.scope)
        TASK.set(task)
        _, document, _ = await read_json(request.scope, request.receive, LARGEST_BODY, INVALID_RESOLUTION)
        resolution, reason = read_resolution(document)
        # Reserve room for the answer first: nothing is done that cannot be answered.
        hold_stored(await self._decided(task, principal), held_by(request.scope))
        client_of(request.scope).begin()
        resolved = await self.tasks.resolve(task, principal.tenant, resolution, reason)
        row = await self._decided(task, principal)
        if not resolved:
            raise _wrong_state(row, f"the task is {row['state']}: only an uncertain one can be resolved")
        log.info("a task was resolved", extra={"task_id": str(task), "outcome": resolution.value})
        return Response(await self._shown(row, principal), media_type="application/json")

    async def _shown(self, row: Mapping[str, Any], principal: Principal) -> bytes:
        """A task as an answer's body."""
        waits_for, whole = self._waits_for(row), principal.may(Scope.PAYLOAD)
        if len(row["payload"]) < LARGE:
            return to_json(task_document(row, waits_for, whole=whole))
        return await beside_loop(lambda: to_json(task_document(row, waits_for, whole=whole)))

    def _waits_for(self, row: Mapping[str, Any]) -> str | None:
        return waits_for(row, self.open_circuit(row["type"]), datetime.now(UTC))

    async def _found(self, task: UUID, principal: Principal) -> Mapping[str, Any]:
        """The task's row. One of another tenant, or of a type that the key is not bound to, is not there."""
        row: Mapping[str, Any] | None = await self.tasks.get(task, principal.tenant)
        if row is None or not principal.sees(row["type"]):
            raise _unknown(str(task))
        return row

    async def _decided(self, task: UUID, principal: Principal) -> Mapping[str, Any]:
        row = await self._found(task, principal)
        link_request(row["traceparent"])
        return row


def _unknown(text: str) -> Problem:
    return Problem(UNKNOWN_TASK, f"no task has the id {text[:100]!r}; it may have been deleted after its retention")


def read_resolution(document: object) -> tuple[Resolution, str | None]:
    """The decision in a body, and why.

    Raises:
        Problem: 422, with every bad field.
    """
    if not isinstance(document, dict):
        raise Problem(INVALID_RESOLUTION, 'a decision is a JSON object, for example {"outcome": "succeeded"}')
    errors = unknown_fields(document, ("outcome", "reason"))
    outcome, reason = document.get("outcome"), document.get("reason")
    if not isinstance(outcome, str) or outcome not in list(Resolution):
        errors.append(FieldError("outcome", f"must be one of {', '.join(Resolution)}"))
    if reason is not None and not (isinstance(reason, str) and 1 <= len(reason.strip()) <= LONGEST_REASON):
        errors.append(FieldError("reason", f"must be a text of 1 to {LONGEST_REASON} characters"))
    if errors:
        raise not_valid(INVALID_RESOLUTION, errors)
    return Resolution(str(outcome)), reason.strip() if reason is not None else None


def _wrong_state(row: Mapping[str, Any], detail: str) -> Problem:
    return Problem(WRONG_STATE, detail, extra={"taskId": str(row["id"]), "taskStatus": row["state"]})
