"""Every error of the API as RFC 9457 `application/problem+json`, from one list of kinds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route

from taskflux.http.answers import PROBLEM, to_json
from taskflux.store.errors import RefusedData, SchemaTooOld, StoreError
from taskflux.telemetry.logs import frames

log = logging.getLogger(__name__)

RETRY_AFTER: Final = 5
"""Seconds that a submitter is asked to wait while PostgreSQL is away."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of error: the last part of its `type`, its status, and the title that all of the sort share."""

    slug: str
    status: int
    title: str

    @property
    def type(self) -> str:
        """A relative URI reference, resolved against the address of the API."""
        return f"/problems/{self.slug}"


KINDS: Final[dict[str, Kind]] = {}


def _kind(slug: str, status: int, title: str) -> Kind:
    KINDS[slug] = Kind(slug, status, title)
    return KINDS[slug]


MALFORMED_JSON: Final = _kind("malformed-json", 400, "The body is not JSON")
BAD_REQUEST: Final = _kind("bad-request", 400, "The request cannot be understood")
NOT_FOUND: Final = _kind("not-found", 404, "There is nothing at this address")
UNKNOWN_TASK: Final = _kind("unknown-task", 404, "There is no such task")
UNKNOWN_DEAD_LETTER: Final = _kind("unknown-dead-letter", 404, "There is no such dead letter")
UNKNOWN_REPLAY: Final = _kind("unknown-replay", 404, "There is no such bulk replay")
METHOD_NOT_ALLOWED: Final = _kind("method-not-allowed", 405, "This address does not know the method")
ALREADY_REPLAYED: Final = _kind("already-replayed", 409, "The dead letter was sent again before")
ALREADY_DISCARDED: Final = _kind("already-discarded", 409, "The dead letter was discarded")
WRONG_STATE: Final = _kind("wrong-state", 409, "The task's state does not allow this")
TASK_MOVED_ON: Final = _kind("task-moved-on", 409, "The task does not stand as the dead letter tells")
TOO_LARGE: Final = _kind("too-large", 413, "The body is too large")
UNSUPPORTED_MEDIA_TYPE: Final = _kind("unsupported-media-type", 415, "The body's content type is not accepted here")
INVALID_TASK: Final = _kind("invalid-task", 422, "The task is not valid")
UNKNOWN_TASK_TYPE: Final = _kind("unknown-task-type", 422, "No worker has registered this task type")
KEY_REUSED: Final = _kind("idempotency-key-reused", 422, "The idempotency key stands for another request")
INVALID_RESOLUTION: Final = _kind("invalid-resolution", 422, "The decision is not valid")
INVALID_QUERY: Final = _kind("invalid-query", 422, "The query is not valid")
INVALID_REPLAY: Final = _kind("invalid-replay", 422, "The dead letter cannot be sent again like this")
INVALID_DISCARD: Final = _kind("invalid-discard", 422, "The dead letter cannot be discarded like this")
EMPTY_FILTER: Final = _kind("empty-filter", 422, "The filter is empty")
INVALID_NOTIFICATION: Final = _kind("invalid-notification", 422, "The notification is not valid")
DELIVERY_REFUSED: Final = _kind("delivery-refused", 422, "The message can never be delivered")
REFUSED_DATA: Final = _kind("refused-data", 422, "The store refuses a value of the task")
INTERNAL: Final = _kind("internal", 500, "TaskFlux failed")
PROVIDER_UNAVAILABLE: Final = _kind("provider-unavailable", 502, "The provider is away")
PROVIDER_MISCONFIGURED: Final = _kind("provider-misconfigured", 502, "The provider refuses this deployment")
DELIVERY_DEFERRED: Final = _kind("delivery-deferred", 503, "The message is to be sent later")
STORE_UNAVAILABLE: Final = _kind("store-unavailable", 503, "The store cannot be reached")
NOT_STARTED: Final = _kind("not-started", 503, "The process has not started yet")
DELIVERY_UNKNOWN: Final = _kind("delivery-unknown", 504, "The message may have been sent")


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field; `field` is a path such as `payload.to[0]`, or the name of a header."""

    field: str
    message: str


class Problem(Exception):
    """An error that the caller is told.

    Args:
        kind: which sort it is.
        detail: one sentence on this occurrence, with what to do about it.
        errors: each bad field.
        headers: further headers of the answer.
        extra: further members of the document.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        errors: Sequence[FieldError] = (),
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(kind.slug)  # never the detail, which may quote the caller: this text can reach a log
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.kind.status

    def document(self) -> dict[str, Any]:
        """The problem as a JSON object."""
        document: dict[str, Any] = {
            "type": self.kind.type,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = [{"field": error.field, "message": error.message} for error in self.errors]
        return document | self.extra

    def response(self) -> Response:
        """The problem as an answer."""
        return Response(to_json(self.document()), self.status, self.headers, PROBLEM.decode())


def store_problem(error: StoreError) -> Problem:
    """What a submitter or reader is told when the store did not do what was asked."""
    if isinstance(error, RefusedData):
        return Problem(REFUSED_DATA, "PostgreSQL does not take a value of this task; sending it again changes nothing")
    if isinstance(error, SchemaTooOld):
        detail = "the database has not been migrated to this version yet; nothing was changed, try again later"
    else:
        detail = (
            "PostgreSQL cannot be reached or does not answer in time; a task that was being submitted may or may not"
            " have been accepted, so send it again with the same idempotency key"
        )
    headers = {"Retry-After": str(RETRY_AFTER)}
    return Problem(STORE_UNAVAILABLE, detail, headers=headers, extra={"retryAfter": RETRY_AFTER})


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _on_store_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)
    return store_problem(error).response()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return Problem(NOT_FOUND, f"nothing is served at {request.url.path[:200]}", headers=headers).response()
    if error.status_code == 405:
        allowed = headers["Allow"] = ", ".join(sorted(_methods_at(request)))
        detail = f"{request.method} is not possible here; possible is {allowed}"
        return Problem(METHOD_NOT_ALLOWED, detail, headers=headers).response()
    kind = Kind("bad-request", error.status_code, error.detail)
    return Problem(kind, error.detail, headers=headers).response()


def _methods_at(request: Request) -> set[str]:
    """What the address knows, over all of its routes: each names only its own."""
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return methods


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _on_bug(request: Request, error: Exception) -> Response:
    """Told without the exception's text and without values: they may hold somebody's address."""
    log.error("%s while answering %s\n%s", type(error).__name__, request.method, frames(error))
    return Problem(INTERNAL, "this is a fault of TaskFlux; its log says where it happened").response()


EXCEPTION_HANDLERS: Final[dict[Any, Callable[[Request, Exception], Any]]] = {
    Problem: _on_problem,
    StoreError: _on_store_error,
    HTTPException: _on_http_exception,
    ClientDisconnect: _on_disconnect,
    Exception: _on_bug,
}
"""For `Starlette(exception_handlers=…)`."""
