"""Around every request: the host that it names, its client, its trace, its metrics, and one line in the log.

The line and the span name the method and the route's template, never what was asked for by it: a path may hold a
secret, a query somebody's address. Clients' addresses are not noted. Probes are neither logged nor traced.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskflux.http.bodies import to_json
from taskflux.http.client import client_of
from taskflux.http.problems import PROBLEM, UNKNOWN_HOST, Problem
from taskflux.telemetry import logs, metrics, tracing
from taskflux.telemetry.instruments import OTHER
from taskflux.telemetry.tracing import TRACE, Span
from taskflux.worker.hosts import refusal

log = logging.getLogger(__name__)

SILENT: Final = frozenset({"/livez", "/readyz", "/metrics"})
UNMATCHED: Final = "(no route)"
ABORTED: Final = "aborted"
"""The status of a request that nobody answered."""

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 0x01
_RANDOM: Final = 0x02


def incoming(header: bytes) -> str | None:
    """The caller's traceparent in version 00, or None when it is one that the standard says to ignore.

    The standard: https://www.w3.org/TR/trace-context/
    """
    match = _TRACEPARENT.fullmatch(header.strip())
    if match is None:
        return None
    version, trace, parent, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None) or not trace.strip(b"0") or not parent.strip(b"0"):
        return None
    known = int(flags, 16) & (_SAMPLED | _RANDOM)
    return f"00-{trace.decode()}-{parent.decode()}-{known:02x}"


class Requests:
    """An application, with every request of it traced, counted and logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kinds: dict[tuple[str, str, int], _Kind] = {}
        self.in_progress = 0
        metrics.HTTP_IN_PROGRESS.labels().follow(self, lambda requests: requests.in_progress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in SILENT:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in metrics.METHODS else OTHER  # a caller may call any word one
        traceparent, span = _trace(scope, method)
        TRACE.set(traceparent)  # every request has an asyncio task, and so a context, of its own
        status, broke = 0, False
        client = client_of(scope)

        async def listen() -> Message:
            if client.ready:  # no need to wait
                message = await receive()
            else:
                try:
                    with client.until_arrived():
                        message = await receive()
                except ClientDisconnect:
                    return {"type": "http.disconnect"}
            if message["type"] == "http.disconnect":
                client.leave()
            elif not message.get("more_body"):
                client.arrived = False
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start" and not client.gone:
                status = message["status"]
            await send(message)

        loop = asyncio.get_running_loop()
        began = loop.time()
        self.in_progress += 1
        try:
            if span is None:
                await self._app(scope, listen, answer)
            else:
                with span:
                    try:
                        await self._app(scope, listen, answer)
                    finally:
                        _describe(span, method, _route(scope), status)
        except Exception:
            broke = True
            if not status:
                raise
            # Whoever answered has told the fault, too.
        finally:
            self.in_progress -= 1
            self._tell(method, _route(scope), status, loop.time() - began, traceparent, broke=broke)

    def _tell(self, method: str, route: str, status: int, seconds: float, traceparent: str, *, broke: bool) -> None:
        """Count a request, and log it. Without a status, the client has disconnected."""
        kind = self._kinds.get((method, route, status))
        if kind is None:
            kind = self._kinds[method, route, status] = _Kind(method, route, status)
        kind.count.inc()
        kind.seconds.observe(seconds, tracing.exemplar(traceparent) if tracing.on else None)
        failed = broke or status >= 500
        sampler, level = (logs.failed_requests, logging.WARNING) if failed else (logs.requests, logging.INFO)
        about = {"status": status or None, "duration_ms": round(seconds * 1000, 1)}
        sampler.log(log, level, kind.asked, kind.told, about)


class _Kind:
    """What requests of one kind share: their series, and their log line."""

    __slots__ = ("asked", "count", "seconds", "told")

    def __init__(self, method: str, route: str, status: int) -> None:
        self.count = metrics.HTTP_REQUESTS.labels(method, route, str(status or ABORTED))
        self.seconds = metrics.HTTP_SECONDS.labels(method, route)
        self.asked = f"{method} {route}"
        self.told = f"{method} {route} {status}"


def _route(scope: Scope) -> str:
    route: str = getattr(scope.get("route"), "path", UNMATCHED)
    return route


def _trace(scope: Scope, method: str) -> tuple[str, Span | None]:
    """The trace of a request, and its span if it is sampled."""
    if tracing.on:
        about = {"http.request.method": "_OTHER" if method == OTHER else method, "url.scheme": scope["scheme"]}
        begun = tracing.request(scope["headers"], about)
        return begun.traceparent, begun if tracing.sampled(begun.traceparent) else None
    for name, value in scope["headers"]:
        if name == b"traceparent":
            given = incoming(value)
            if given is not None:
                return given, None
    return tracing.new_traceparent(), None


def _describe(span: Span, method: str, route: str, status: int) -> None:
    span.named(f"{method} {route}")
    span.note("http.route", route)
    span.note("url.path", route)
    if status:
        span.note("http.response.status_code", status)
    if status >= 500:
        span.failed(str(status))


NAMES: Final = 16
"""Host headers whose answer is remembered: clients mostly ask by the same few."""


class KnownHosts:
    """`app`, asked by one of the names that are `allowed`; none: by any."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._refusal = lru_cache(NAMES)(partial(refusal, allowed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = tuple([value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"])
        said = self._refusal(hosts) if scope["type"] == "http" else None
        if said is None:
            await self._app(scope, receive, send)
            return
        # A handler that asks notify by a wrong name is told to hold its tasks until somebody has set this right.
        problem = Problem(UNKNOWN_HOST, said, extra={"errorClass": "Misconfigured", "reason": said})
        await Response(to_json(problem.document()), problem.status, media_type=PROBLEM)(scope, receive, send)
