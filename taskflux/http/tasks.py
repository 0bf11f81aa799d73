"""A task as the API shows it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from taskflux.http.answers import rfc3339, to_json
from taskflux.http.bodies import (
    JSON_TYPES,
    headers_of,
    json_answer,
    media_type,
    parse_json,
    read_body,
    task_id,
    unknown_task,
)
from taskflux.http.problems import INVALID_RESOLUTION, WRONG_STATE, FieldError, Problem, not_valid, unknown_fields
from taskflux.http.queries import read_task_query, task_cursor
from taskflux.http.services import Decisions, Listing, Reader
from taskflux.store.tasks import Resolution
from taskflux.tasks.states import State
from taskflux.tasks.submission import DEFAULT_TENANT
from taskflux.tasks.timeline import parse_timeline
from taskflux.telemetry.request_spans import link_request


def task_document(row: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a task's row (columns of the query `get_task`)."""
    whole = {"payload": stored_json(row["payload"]), "timeline": timeline(row)}
    return task_summary(row) | whole


def timeline(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The timeline of a row, each entry with the trace that it stands in."""
    entries: list[dict[str, Any]] = [*map(dict, parse_timeline(row["timeline"] or ()))]
    trace = trace_id(row["traceparent"])
    return [entry | {"traceId": trace} for entry in entries] if trace else entries


def trace_id(traceparent: str | None) -> str | None:
    """The trace id in a traceparent."""
    return traceparent[3:35] if traceparent else None


def task_summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same without payload and timeline, as lists show it (columns of the queries `list_…`)."""
    document = {
        "taskId": str(row["id"]),
        "taskType": row["type"],
        "status": row["state"],
        "attempts": row["attempts"],
        "maxAttempts": row["max_attempts"],
        "retryCount": max(row["attempts"] - 1, 0),
        "createdAt": rfc3339(row["created_at"]),
        "updatedAt": rfc3339(row["updated_at"]),
        "dueAt": rfc3339(row["due_at"]),
        "result": stored_json(row["result"]),
        "error": _error(row),
    }
    return document | {name: value for name, value in _only_when_set(row).items() if value is not None}


def _error(row: Mapping[str, Any]) -> dict[str, str | None] | None:
    if row["error_class"] is None:
        return None
    return {"class": row["error_class"], "reason": row["error_reason"]}


def _only_when_set(row: Mapping[str, Any]) -> dict[str, Any]:
    expires_at: datetime | None = row["expires_at"]
    return {
        "key": row["key"],
        "metadata": stored_json(row["metadata"]),
        "expiresAt": rfc3339(expires_at) if expires_at else None,
        "replays": row["replays"] or None,
        "delivery": _delivery(row),
        "traceId": trace_id(row["traceparent"]),
    }


def _delivery(row: Mapping[str, Any]) -> Any:
    """What the provider has reported of this replay's message, if anything. It is no outcome of the task."""
    delivery = stored_json(row.get("delivery"))
    if not isinstance(delivery, dict) or delivery.pop("replay", 0) != row["replays"]:
        return None
    return delivery


def stored_json(text: str | None) -> Any:
    """What a stored JSON text says. A foreign record may hold what is nearly JSON: it is shown, not refused."""
    if text is None:
        return None
    try:
        return json.loads(text, parse_float=_float, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def _float(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


class ListTasks:
    """The endpoint."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    async def page(self, request: Request) -> Response:
        """A page of what the query asks for."""
        asked = read_task_query(request.query_params.multi_items())
        page = await self._listing.page(DEFAULT_TENANT, asked.wanted, asked.limit, asked.after)
        following = task_cursor(page.after, asked) if page.after else None
        items = [task_summary(row) for row in page.rows]
        return json_answer({"items": items, "nextCursor": following})


log = logging.getLogger(__name__)

LARGEST_BODY: Final = 64 * 1024
LONGEST_REASON: Final = 1000

_NOT_CANCELLED: Final = {
    State.RUNNING: "a worker has taken it: it cannot be called back",
    State.SUCCEEDED: "it has succeeded already",
    State.DEAD: "it is dead already: discard its dead letter if it shall not be replayed",
    State.UNCERTAIN: "its side effect may have happened: resolve it instead",
}


class TaskDecisions:
    """The endpoints. Repeating a decision is harmless: nothing is done twice."""

    def __init__(self, reader: Reader, decisions: Decisions) -> None:
        self._reader = reader
        self._decisions = decisions

    async def cancel(self, request: Request) -> Response:
        """The cancelled task, also where it was cancelled before; 409 where it waits no more."""
        task = task_id(request.path_params["task_id"])
        if await self._decisions.cancel(task, DEFAULT_TENANT):
            log.info("a task was cancelled", extra={"task_id": str(task)})
        row = await self._read(task)
        if row["state"] != State.CANCELLED:
            # It may have been handed back since, and wait again: then the same request finds it.
            why = _NOT_CANCELLED.get(row["state"], "it was running a moment ago: ask again")
            raise _wrong_state(row, f"the task is {row['state']} and was not cancelled: {why}")
        return _shown(row)

    async def resolve(self, request: Request) -> Response:
        """The task after the decision; 409 where there was nothing to decide."""
        task = task_id(request.path_params["task_id"])
        headers = headers_of(request.scope)
        media_type(headers, JSON_TYPES)
        resolution, reason = read_resolution(parse_json(await read_body(headers, request.receive, LARGEST_BODY)))
        resolved = await self._decisions.resolve(task, DEFAULT_TENANT, resolution, reason)
        row = await self._read(task)
        if not resolved:
            raise _wrong_state(row, f"the task is {row['state']}: only an uncertain one can be resolved")
        log.info("a task was resolved", extra={"task_id": str(task), "outcome": resolution.value})
        return _shown(row)

    async def _read(self, task: UUID) -> Mapping[str, Any]:
        row = await self._reader.get(task, DEFAULT_TENANT)
        if row is None:
            raise unknown_task(str(task))
        link_request(row["traceparent"])
        return row


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


def _shown(row: Mapping[str, Any]) -> Response:
    return Response(to_json(task_document(row)), media_type="application/json")
