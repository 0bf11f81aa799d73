"""`DELETE /tasks/{id}` cancels a task that waits; `POST /tasks/{id}/resolve` decides on an uncertain one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from taskflux.http.answers import to_json
from taskflux.http.bodies import JSON_TYPES, headers_of, media_type, read_body
from taskflux.http.paths import task_id, unknown_task
from taskflux.http.problems import INVALID_RESOLUTION, WRONG_STATE, FieldError, Problem
from taskflux.http.schema import shortened
from taskflux.http.services import Reader
from taskflux.http.submissions import parse_json
from taskflux.http.task_desk import Decisions
from taskflux.http.views import task_document
from taskflux.store.decisions import Resolution
from taskflux.tasks.states import State
from taskflux.tasks.submission import DEFAULT_TENANT
from taskflux.telemetry.request_spans import link_request

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
    errors = [
        FieldError(shortened(name, 100), "is not known here; known are outcome, reason")
        for name in sorted(document.keys() - {"outcome", "reason"})[:20]
    ]
    outcome, reason = document.get("outcome"), document.get("reason")
    if not isinstance(outcome, str) or outcome not in list(Resolution):
        errors.append(FieldError("outcome", f"must be one of {', '.join(Resolution)}"))
    if reason is not None and not (isinstance(reason, str) and 1 <= len(reason.strip()) <= LONGEST_REASON):
        errors.append(FieldError("reason", f"must be a text of 1 to {LONGEST_REASON} characters"))
    if errors:
        names = ", ".join(error.field for error in errors)
        raise Problem(INVALID_RESOLUTION, shortened(f"not valid: {names}", 400), errors)
    return Resolution(str(outcome)), reason.strip() if reason is not None else None


def _wrong_state(row: Mapping[str, Any], detail: str) -> Problem:
    return Problem(WRONG_STATE, detail, extra={"taskId": str(row["id"]), "taskStatus": row["state"]})


def _shown(row: Mapping[str, Any]) -> Response:
    return Response(to_json(task_document(row)), media_type="application/json")
