"""Around every request: its trace, its metrics, and one line in the log when it is answered.

The line and the span name the method and the route's template, never what was asked for by it: a path may hold a
secret, a query somebody's address. Clients' addresses are not noted. Probes are neither logged nor traced.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskflux.telemetry import logs, metrics, tracing
from taskflux.telemetry.instruments import OTHER
from taskflux.telemetry.tracing import TRACE, Span

log = logging.getLogger(__name__)

SILENT: Final = frozenset({"/livez", "/readyz", "/metrics"})
UNMATCHED: Final = "(no route)"
ABORTED: Final = "aborted"
"""The status of a request that nobody answered."""

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 0x01
_RANDOM: Final = 0x02


def incoming(header: bytes | None) -> str | None:
    """The caller's traceparent in version 00, or None when it has none or one that the standard says to ignore.

    The standard: https://www.w3.org/TR/trace-context/
    """
    match = _TRACEPARENT.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    version, trace, parent, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None) or not trace.strip(b"0") or not parent.strip(b"0"):
        return None
    known = int(flags, 16) & (_SAMPLED | _RANDOM)
    return f"00-{trace.decode()}-{parent.decode()}-{known:02x}"


def request_traceparent() -> str:
    """The trace that the request under way stands in, and the tasks that it makes."""
    return TRACE.get() or tracing.new_traceparent()


class Requests:
    """An application, with every request of it traced and logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in SILENT:
            await self._app(scope, receive, send)
            return
        span = None
        if tracing.on:
            method = "_OTHER" if method_of(scope) == OTHER else method_of(scope)
            span = tracing.request(scope["headers"], {"http.request.method": method, "url.scheme": scope["scheme"]})
            traceparent = span.traceparent
        else:
            header = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
            traceparent = incoming(header) or tracing.new_traceparent()
        TRACE.set(traceparent)  # every request has an asyncio task, and so a context, of its own
        answer = _Answer(send)
        began = asyncio.get_running_loop().time()
        in_progress = metrics.HTTP_IN_PROGRESS.labels()
        in_progress.inc()
        try:
            if span is not None and tracing.sampled(traceparent):
                with span:
                    try:
                        await self._app(scope, receive, answer.send)
                    finally:
                        _describe(span, scope, answer.status)
            else:
                await self._app(scope, receive, answer.send)
        except Exception:
            answer.broke = True
            if not answer.status:
                raise
            # Whoever answered has told the fault, too.
        finally:
            in_progress.dec()
            _note(scope, answer, began, tracing.exemplar(traceparent) if tracing.on else None)


class _Answer:
    """Notes the status on the way out."""

    __slots__ = ("_send", "broke", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.broke = False

    async def send(self, message: Message) -> None:
        """Pass it on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _describe(span: Span, scope: Scope, status: int) -> None:
    route = route_of(scope)
    span.named(f"{method_of(scope)} {route}")
    span.note("http.route", route)
    span.note("url.path", route)
    if status:
        span.note("http.response.status_code", status)
    if status >= 500:
        span.failed(str(status))


def method_of(scope: Scope) -> str:
    """The request's method. A caller may call any word one."""
    return scope["method"] if scope["method"] in metrics.METHODS else OTHER


def route_of(scope: Scope) -> str:
    """The template of the route that a request met."""
    return getattr(scope.get("route"), "path", UNMATCHED)


def _note(scope: Scope, answer: _Answer, began: float, exemplar: dict[str, str] | None) -> None:
    """Count a request that has ended, and log it."""
    now = asyncio.get_running_loop().time()
    method, route, status = method_of(scope), route_of(scope), answer.status
    metrics.HTTP_REQUESTS.labels(method, route, str(status or ABORTED)).inc()
    metrics.HTTP_SECONDS.labels(method, route).observe(now - began, exemplar)
    failed = answer.broke or status >= 500  # without a status, the client has disconnected
    level = logging.WARNING if failed else logging.INFO
    if not log.isEnabledFor(level):
        return
    asked = f"{method} {route}"
    omitted = (logs.failed_requests if failed else logs.requests).take(f"{asked} {status}", now)
    if omitted is None:
        return
    extra: dict[str, object] = {"status": status or None, "duration_ms": round((now - began) * 1000, 1)}
    if omitted:
        extra["omitted"] = omitted
    log.log(level, asked, extra=extra)
