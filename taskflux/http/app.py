"""The HTTP application of ingest: its routes, the probes, and one form for every error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route

from taskflux.http.access import Access, guarded
from taskflux.http.batch import SubmitBatch
from taskflux.http.bodies import Bounded, Flight, bug_answer, problem_answer
from taskflux.http.dead_letters import DeadLetterRoutes
from taskflux.http.openapi.document import documentation_routes, start_route
from taskflux.http.openapi.operations import ABOUT, API, api_json, needs
from taskflux.http.problems import (
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    NOT_STARTED,
    Kind,
    Problem,
    store_problem,
)
from taskflux.http.receipts import Msg91Webhook
from taskflux.http.submissions import Direct, Submissions
from taskflux.http.tasks import TaskRoutes
from taskflux.store.errors import StoreError
from taskflux.tasks.access import Scope
from taskflux.telemetry import outages
from taskflux.telemetry.instruments import SWITCHED_OFF, packed, shown, switched_off

Exposition = Callable[[str], Awaitable[tuple[bytes, str]]]
"""From an Accept header to the text of `/metrics`, and its content type."""


async def own_metrics(accept: str) -> tuple[bytes, str]:
    """This process's metrics."""
    return await asyncio.to_thread(shown, accept)


def create_app(
    submissions: Submissions,
    tasks: TaskRoutes,
    dead_letters: DeadLetterRoutes,
    webhook: Msg91Webhook | None,
    started: Callable[[], bool],
    exposition: Exposition | None = own_metrics,
    inbox: str | None = None,
    *,
    access: Access,
) -> Starlette:
    """The API of ingest; each route has the id of its operation in `taskflux.http.openapi.operations`, and needs the
    scope that is named there.

    Without a `webhook`, delivery reports are not accepted; without an `exposition`, there are no metrics. `started` is
    the answer of `/readyz`. `inbox` is the address of the local inbox, for the start page.
    """
    scopes = needs(API)

    def _route(method: str, path: str, endpoint: Callable[..., Any], operation: str) -> Route:
        return guarded(access, scopes[operation])(path, endpoint, methods=[method], name=operation)

    routes = [
        start_route("TaskFlux", ABOUT, inbox),
        _route("POST", "/tasks", submissions, "submitTask"),
        _route("POST", "/tasks/batch", SubmitBatch(submissions), "submitBatch"),
        _route("GET", "/tasks", tasks.page, "listTasks"),
        _route("GET", "/tasks/{task_id}", tasks.show, "getTask"),
        _route("GET", "/tasks/{task_id}/why", tasks.why, "whyTask"),
        _route("DELETE", "/tasks/{task_id}", tasks.cancel, "cancelTask"),
        _route("POST", "/tasks/{task_id}/resolve", tasks.resolve, "resolveTask"),
        _route("GET", "/dead-letters", dead_letters.page, "listDeadLetters"),
        _route("GET", "/dead-letters/groups", dead_letters.groups, "groupDeadLetters"),
        _route("POST", "/dead-letters/replay", dead_letters.start_bulk, "replayDeadLetters"),
        _route("POST", "/dead-letters/discard", dead_letters.start_discard, "discardDeadLetters"),
        _route("GET", "/dead-letters/replays", dead_letters.list_bulk, "listReplays"),
        _route("GET", "/dead-letters/replays/{replay_id}", dead_letters.show_bulk, "getReplay"),
        _route("DELETE", "/dead-letters/replays/{replay_id}", dead_letters.stop_bulk, "stopReplay"),
        _route("GET", "/dead-letters/{letter_id}", dead_letters.show, "getDeadLetter"),
        _route("POST", "/dead-letters/{letter_id}/replay", dead_letters.replay, "replayDeadLetter"),
        _route("POST", "/dead-letters/{letter_id}/discard", dead_letters.discard, "discardDeadLetter"),
    ]
    if webhook is not None:
        routes.append(_route("POST", "/webhooks/msg91/{secret}", webhook.record, "msg91Reports"))
    routes += probe_routes(started, exposition, access)

    def described(request: Request) -> bytes:
        """Without a key, only what is the same in every deployment: a payload's schema may tell a stranger too much."""
        known = access.known(dict(request.scope["headers"])) is not None
        return api_json(submissions.registry.schemas if known else ())

    routes += documentation_routes(described)
    app = application(routes, submissions.limits.bytes_in_flight)
    app.state.direct = Direct(submissions, app.state.flight, access)
    return app


def application(routes: Sequence[Route], bytes_in_flight: int) -> Starlette:
    """An application of these routes whose every error is a problem document, and whose memory is bounded."""
    flight = Flight(bytes_in_flight)
    bounded = Middleware(Bounded, flight)
    app = Starlette(routes=list(routes), middleware=[bounded], exception_handlers=EXCEPTION_HANDLERS)
    app.state.flight = flight
    app.router.redirect_slashes = False  # a redirected POST is lost on clients that repeat it as a GET
    return app


def probe_routes(
    started: Callable[[], bool], metrics: Exposition | None = own_metrics, access: Access | None = None
) -> list[Route]:
    """The routes of the probes, and of the metrics unless they have a port of their own.

    Beside an API (`access`), the metrics need its key: they name all tenants' task types. On their own port, they need
    none.

    livez is the loop's own heartbeat: it answers as long as the loop runs, and asks no server. readyz is true once
    `started`, and stays so while a store is unreachable: otherwise an outage would take all replicas out of their
    Service at once. Its body says what the process waits for.
    """

    async def livez(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        if not started():
            raise Problem(NOT_STARTED, "it is not ready yet", headers={"Retry-After": "1"})
        return PlainTextResponse("".join(f"{line}\n" for line in ("ok", *outages.waiting())))

    async def exposed(request: Request) -> Response:
        assert metrics is not None
        if switched_off():
            return PlainTextResponse(SWITCHED_OFF, status_code=404)
        body, content_type = await metrics(request.headers.get("accept", ""))
        encoding = request.headers.get("accept-encoding", "")
        body, headers = await asyncio.to_thread(packed, body, content_type, encoding)
        return Response(body, headers=headers)

    probes = [Route("/livez", livez, name="livez"), Route("/readyz", readyz, name="readyz")]
    of_metrics = Route if access is None else guarded(access, Scope.READ)
    return probes if metrics is None else [*probes, of_metrics("/metrics", exposed, name="metrics")]


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_answer(error)


async def _on_store_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)
    return problem_answer(store_problem(error))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return problem_answer(Problem(NOT_FOUND, f"nothing is served at {request.url.path[:200]}", headers=headers))
    if error.status_code == 405:
        allowed = headers["Allow"] = ", ".join(sorted(_methods_at(request)))
        detail = f"{request.method} is not allowed here; allowed: {allowed}"
        return problem_answer(Problem(METHOD_NOT_ALLOWED, detail, headers=headers))
    kind = Kind("bad-request", error.status_code, error.detail)
    return problem_answer(Problem(kind, error.detail, headers=headers))


def _methods_at(request: Request) -> set[str]:
    """The methods of an address, over all of its routes: each route knows only its own."""
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return methods


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client does not read it


async def _on_bug(request: Request, error: Exception) -> Response:
    return bug_answer(request.method, error)


EXCEPTION_HANDLERS: Final[dict[Any, Callable[[Request, Exception], Any]]] = {
    Problem: _on_problem,
    StoreError: _on_store_error,
    HTTPException: _on_http_exception,
    ClientDisconnect: _on_disconnect,
    Exception: _on_bug,
}
"""For `Starlette(exception_handlers=…)`."""
