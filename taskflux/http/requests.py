"""A request: its client, and what goes around every request: the host that it names, its trace, metrics and log line.

A request ends with its client, and begins nothing new once its time is up. Nothing that was begun is cut off: what a
statement writes, or a provider has been asked for, comes to an end, and its outcome is kept. A request calls `begin`
before a step that changes something, and waits for anything else inside `until_late` or `until_disconnected`.

The log line and the span name the method and the route's template, never the path or the query: a path may contain
a secret, a query personal data. Clients' addresses are not noted. Probes are neither logged nor traced.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import lru_cache, partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskflux.http.bodies import problem_answer, to_json
from taskflux.http.problems import NOT_BEGUN, PROBLEM, REQUEST_TIMEOUT, UNKNOWN_HOST, Kind, Problem
from taskflux.telemetry import logs, metrics, tracing
from taskflux.telemetry.instruments import OTHER
from taskflux.telemetry.tracing import TRACE, Span
from taskflux.worker.hosts import refusal

_NAME: Final = "taskflux.client"

Pairs = list[tuple[bytes, bytes]]
"""Headers: lower-case names, and values."""

Answer = Callable[[int, Pairs, bytes], bool]
"""Sends a status, headers and a body; false if the client has disconnected."""

Submit = Callable[[Pairs, bytes, Answer], asyncio.Future[Any] | None]
"""From a request's headers and body to what ends with its answer, or is cancelled; None: the application answers."""


class Client:
    """The client that waits for the answer to one request."""

    __slots__ = ("_late", "_waits", "arrived", "disconnected")

    def __init__(self) -> None:
        self.disconnected = False
        """Whether it has disconnected."""
        self.arrived = False
        """Whether the whole body has arrived and can be read without waiting."""
        self._late: tuple[str, Kind] | None = None
        self._waits: list[_Wait] = []

    @property
    def late(self) -> bool:
        """Whether the request's time is up."""
        return self._late is not None

    @property
    def ready(self) -> bool:
        """Whether the body can be read now, without waiting."""
        return self.arrived and not self.disconnected and self._late is None

    def leave(self) -> None:
        """It has disconnected: everything that waits for it ends."""
        self.disconnected = True
        for wait in self._waits:
            wait.end()

    def expire(self, why: str, kind: Kind = REQUEST_TIMEOUT) -> None:
        """The request's time is up: nothing more of it is read, and what waits to begin something ends.

        Args:
            why: the limit that was reached, in a sentence.
            kind: the problem of what has not been read.
        """
        if self._late is None:
            self._late = why, kind
            for wait in self._waits:
                if wait.problem is not None:
                    wait.end()

    def check(self) -> None:
        """Start nothing new for a client that has disconnected.

        Raises:
            ClientDisconnect: it has.
        """
        if self.disconnected:
            raise ClientDisconnect

    def begin(self) -> None:
        """Start a new step, unless the client has disconnected or the request's time is up.

        Raises:
            ClientDisconnect: it has disconnected.
            Problem: 503, the request's time is up.
        """
        self.check()
        if self.late:
            raise self.not_begun()

    def until_disconnected(self) -> _Wait:
        """A context that ends with ClientDisconnect once it has disconnected."""
        return _Wait(self, None)

    def until_late(self) -> _Wait:
        """The same, for what is to begin; it ends with the problem `not_begun`, too, once the request's time is up."""
        return _Wait(self, self.not_begun)

    def until_arrived(self) -> _Wait:
        """The same, for what is to be read; its problem says why the rest is not."""
        return _Wait(self, self._not_read)

    def not_begun(self) -> Problem:
        """The problem of what had not started when the request's time was up."""
        return self._problem(NOT_BEGUN)

    def _not_read(self) -> Problem:
        return self._problem(self._late[1] if self._late else REQUEST_TIMEOUT)

    def _problem(self, kind: Kind) -> Problem:
        why = self._late[0] if self._late else ""
        if kind.status not in (408, 503):
            return Problem(kind, why)
        return Problem(kind, why, headers={"Retry-After": "1"}, extra={"retryAfter": 1})


class _Wait:
    """Cancels what its task waits for, once its client triggers it; as `asyncio.Timeout`, at a tenth of the cost."""

    __slots__ = ("_cancelling", "_client", "_task", "problem")

    def __init__(self, client: Client, problem: Callable[[], Problem] | None) -> None:
        """Without a `problem`, the end of the request's time does not trigger it."""
        self._client = client
        self.problem = problem
        self._task: asyncio.Task[Any] | None = None  # until it has been cancelled from here

    def end(self) -> None:
        asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def __enter__(self) -> None:
        client = self._client
        if client.disconnected:
            raise ClientDisconnect
        if self.problem is not None and client.late:
            raise self.problem()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        client._waits.append(self)

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client._waits.remove(self)
        if self._task is not None:
            self._task = None
            return
        task = asyncio.current_task()
        if task and task.uncancel() <= self._cancelling and error is asyncio.CancelledError:
            self._client.check()
            assert self.problem is not None  # without one, only a disconnect triggers it
            raise self.problem() from None


def client_of(scope: MutableMapping[str, Any]) -> Client:
    """The client of the request with this scope. Our server creates it; under another one, it never disconnects."""
    client: Client | None = scope.get(_NAME)
    if client is None:
        client = scope[_NAME] = Client()
    return client


log = logging.getLogger(__name__)

SILENT: Final = frozenset({"/livez", "/readyz", "/metrics"})
UNMATCHED: Final = "(no route)"
ABORTED: Final = "aborted"
"""The status of a request without a response."""

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
    """An application whose requests are all traced, counted and logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kinds: dict[tuple[str, str, int], _Kind] = {}
        self.in_progress = 0
        metrics.HTTP_IN_PROGRESS.labels().follow(self, lambda requests: requests.in_progress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in SILENT:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in metrics.METHODS else OTHER  # it may be any word
        traceparent, span = _trace(scope, method)
        TRACE.set(traceparent)  # every request has an asyncio task, and so a context, of its own
        logs.TASK.set(None)  # which may have begun in that of the request before on its connection
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
            if message["type"] == "http.response.start" and not client.disconnected:
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
            # What answered has logged the error, too.
        finally:
            self.in_progress -= 1
            self.record(method, _route(scope), status, loop.time() - began, traceparent, broke=broke)

    def record(self, method: str, route: str, status: int, seconds: float, traceparent: str, *, broke: bool) -> None:
        """Count a request, and log it. Without a status, the client has disconnected."""
        kind = self._kinds.get((method, route, status))
        if kind is None:
            kind = self._kinds[method, route, status] = _Kind(method, route, status)
        kind.count.inc()
        kind.seconds.observe(seconds, tracing.exemplar(traceparent) if tracing.on else None)
        failed = broke or status >= 500
        sampler, level = (logs.failed_requests, logging.WARNING) if failed else (logs.requests, logging.INFO)
        about = {"status": status or None, "duration_ms": round(seconds * 1000, 1)}
        sampler.log(log, level, kind.key, kind.message, about)


class _Kind:
    """What requests of one kind share: their series, and their log line."""

    __slots__ = ("count", "key", "message", "seconds")

    def __init__(self, method: str, route: str, status: int) -> None:
        self.count = metrics.HTTP_REQUESTS.labels(method, route, str(status or ABORTED))
        self.seconds = metrics.HTTP_SECONDS.labels(method, route)
        self.key = f"{method} {route}"
        self.message = f"{method} {route} {status}"


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
"""Host headers whose result is cached: clients mostly send the same few."""


class KnownHosts:
    """`app`, for requests to one of the `allowed` names; without any, for all requests."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self.allowed = allowed
        self._refusal = lru_cache(NAMES)(partial(refusal, allowed))

    def refuse(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """Why a request with these headers is refused."""
        return self._refusal(tuple([value.decode("latin-1") for name, value in headers if name == b"host"]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = self.refuse(scope["headers"]) if scope["type"] == "http" else None
        if said is None:
            await self._app(scope, receive, send)
            return
        # Misconfigured: a handler that calls notify by a wrong name holds its tasks until the name is fixed.
        problem = Problem(UNKNOWN_HOST, said, extra={"errorClass": "Misconfigured", "reason": said})
        await problem_answer(problem)(scope, receive, send)


def look_over(version: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[str | None, int]:
    """Why the head of a request that can be parsed is refused, and the size of its fields in bytes.

    It is refused if a proxy might parse it as another request (RFC 9112, 3.2 and 6.1).
    """
    fault, size, hosts = None, 0, 0
    for name, value in headers:
        size += len(name) + len(value) + 4
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding" and (value.lower() != b"chunked" or version == "1.0"):
            fault = "the only supported Transfer-Encoding is chunked, in HTTP/1.1"
    if fault is None and version not in ("1.0", "1.1"):
        fault = "only HTTP/1.1 and HTTP/1.0 are supported"
    if fault is None and hosts != 1 and (hosts or version == "1.1"):
        fault = "a request must have exactly one Host header"
    return fault, size


def last_answer(problem: Problem) -> bytes:
    """The bytes that end a connection with a problem."""
    body = to_json(problem.document())
    status = HTTPStatus(problem.status)
    headers = {"Content-Type": PROBLEM, "Content-Length": str(len(body)), "Connection": "close", **problem.headers}
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
