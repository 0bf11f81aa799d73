"""The connections of a server, and its limits for clients: the size of a request's head, and minimum progress.

A client that is silent, slow to send or slow to read is disconnected. Where the protocol allows it, the client first
gets a problem that says why: 400, 408, 414, 431. When there are too many connections, the one that has waited longest
is closed: first of those without a request, then of those whose bodies are still arriving. Requests that are being
answered are not cut off.

uvicorn limits none of this for httptools: its `h11_max_incomplete_event_size` applies to h11 alone, and with its
`limit_concurrency` the first clients lock out all others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from taskflux.http.problems import (
    BAD_REQUEST,
    HEAD_TOO_LARGE,
    REQUEST_TIMEOUT,
    TARGET_TOO_LONG,
    TOO_MANY_CONNECTIONS,
    Problem,
)
from taskflux.http.requests import Client, Pairs, Submit, client_of, last_answer, look_over
from taskflux.telemetry import metrics

LOOK_EVERY: Final = 1.0
"""Maximum seconds between two checks of all connections."""
MOST_PIPELINED: Final = 64
"""Requests that a client may send without waiting for their answers."""


@dataclass(frozen=True, slots=True)
class Demands:
    """A server's limits for its clients, in seconds and bytes.

    `request` is how long a request may take from its head until nothing new is started for it, `head` how long its head
    may take. `idle` is how long a connection is kept between two requests: longer than load balancers keep theirs
    (60 s), or they would send requests into connections that we are closing.

    A body, and the reading of an answer, may stall for `stall` in all, and one second longer for each `least_rate` of
    bytes that have come through. `linger` is how long a refused client may continue to send before it is cut off: cut
    off at once, it could not read why.
    """

    request: float = 60.0
    head: float = 10.0
    idle: float = 75.0
    stall: float = 10.0
    linger: float = 2.0
    least_rate: int = 1024
    connections: int = 1000
    head_bytes: int = 32 * 1024
    header_fields: int = 100
    target_bytes: int = 8 * 1024


class _Place(IntEnum):  # its hash is the integer's; the hash of an Enum is a call of a Python function
    """What a connection is doing."""

    ENDING = auto()  # it was refused, and may read why
    WAITING = auto()  # for a request
    RECEIVING = auto()  # a request's body
    ANSWERING = auto()


_EVICTED: Final = (_Place.ENDING, _Place.WAITING, _Place.RECEIVING)


class Connections:
    """All connections of one server, by place, in the order in which they came to it."""

    def __init__(self, demands: Demands, submit: Submit | None = None) -> None:
        """`submit` is asked first about a `POST /tasks` that has come whole."""
        self.demands = demands
        self.submit = submit
        self._count = 0
        self._by_place: dict[_Place, dict[Connection, None]] = {place: {} for place in _Place}
        self._last_call = float("inf")
        metrics.HTTP_CUT.zeros()

    def protocol(self) -> type[HttpToolsProtocol]:
        """The protocol of these connections, for uvicorn's `http`."""

        class Ours(Connection):
            owner = self

        return Ours

    def add(self, connection: Connection) -> None:
        """Add a new connection; if there are too many, another one is closed, or this one is refused."""
        most, refusal = self.demands.connections, None
        while self._count >= most:
            evicted = next((other for place in _EVICTED for other in self._by_place[place]), None)
            if evicted is None:
                detail = f"all {most:,} connections have a request that is being answered"
                refusal = Problem(TOO_MANY_CONNECTIONS, detail, headers={"Retry-After": "1"})
                break
            at_once = evicted.place is not _Place.RECEIVING
            evicted.make_room()
            if not at_once:
                break
        self._count += 1
        self._by_place[connection.place][connection] = None
        if refusal is not None:
            connection.refuse(refusal)

    def move(self, connection: Connection, place: _Place) -> None:
        """Note what it is doing now, unless it is being closed."""
        if self._by_place[connection.place].pop(connection, self) is None:
            self._by_place[place][connection] = None
            connection.place = place

    def remove(self, connection: Connection) -> None:
        """It is closed, or is being closed."""
        if self._by_place[connection.place].pop(connection, self) is None:
            self._count -= 1

    def last_call(self, seconds: float) -> None:
        """Give every request at most so many more seconds, also those that come from now on."""
        self._last_call = asyncio.get_running_loop().time() + seconds

    async def watch(self) -> None:
        """Check all connections until cancelled."""
        demands = self.demands
        shortest = min(demands.request, demands.head, demands.idle, demands.stall, demands.linger)
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await asyncio.sleep(min(LOOK_EVERY, shortest / 4))
            now = loop.time()
            for place in _Place:
                for connection in list(self._by_place[place]):
                    connection.look(now, now - looked, self._last_call)
            looked = now


@dataclass(slots=True, eq=False)
class _Cycle:
    """In the place of uvicorn's cycle, for the requests of a connection that the application does not answer."""

    disconnected: bool = False
    keep_alive: bool = True
    message_event: asyncio.Event = field(default_factory=asyncio.Event)  # which uvicorn sets at the end
    response_complete: bool = True
    future: asyncio.Future[Any] | None = None


class _Refused(Exception):
    """Ends the parsing; the connection has the reason."""


class Connection(HttpToolsProtocol):
    """One connection; the event loop, the parser and uvicorn call its methods.

    Requests that a client sends without waiting for answers (pipelined) are answered one after the other. The
    methods for each header or request replace uvicorn's own if these are as short: calling them as well would cost
    more than they do.
    """

    owner: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._demands = self.owner.demands
        self.place = _Place.WAITING
        self._asked: deque[Client] = deque()  # requests that wait for an answer; the first one is next
        self._turn_since = 0.0
        self._fault: Problem | None = None  # what is wrong with what is being parsed
        self._refusal: Problem | None = None
        self._refusing = False  # read nothing more, and close once all requests are answered
        self._cut_at: float | None = None
        self._now = self._free_since = self.loop.time()  # time of the last read; idle since
        self._head_since: float | None = None
        self._fields = self._size = 0  # of the head, and the trailers behind its body
        self._fed = 0  # bytes since the parser last completed something: a head, or a part of a body
        self._in_head = True
        self._received = 0  # bytes of the body
        self._stalled = 0.0  # seconds that it was waited for
        self._unsent = 0  # bytes of answers at the last check
        self._read = 0  # bytes that the client has read since answers are queued
        self._unread_for = 0.0
        self._own = _Cycle()
        self._early: bytes | None = None  # the body so far of a request that the application does not know yet
        self.owner.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by the client or by us."""
        self.owner.remove(self)
        super().connection_lost(exc)
        for client in self._asked:
            client.leave()
        self._asked.clear()
        if self._own.future is not None:
            self._own.future.cancel()

    # Receiving --------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, unless the connection is ending."""
        if self._refusing:
            return
        self._now = self.loop.time()
        if self._in_head and self._head_since is None:  # blank lines before a head count, too
            self._head_since = self._now
        self._fed += len(data)
        self._parse(data)
        if self._fed > self._demands.head_bytes:
            self._read_no_more(_head_too_large(self._demands))
        if self._cut_at is None:
            if not self._in_head and self._asked:
                place = _Place.RECEIVING
            else:
                place = _Place.ANSWERING if self._asked else _Place.WAITING
            if place is not self.place:
                self.owner.move(self, place)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._pass_on()
            self._read_no_more(self._fault or Problem(BAD_REQUEST, "this is not HTTP (RFC 9112)"))
        else:
            self._pass_on()

    def _pass_on(self) -> None:
        """Leave a request to the application, of which the head has come, and maybe more."""
        body, self._early = self._early, None
        if body is not None:
            super().on_headers_complete()
            if body:
                super().on_body(body)

    def _read_no_more(self, why: Problem) -> None:
        """Stop reading: the parser cannot continue, or must not."""
        if self._in_head:
            self.refuse(why)
            return
        if self._asked:  # the reader of its body answers, and learns here that no more follows
            self._asked[-1].expire(why.detail, why.kind)
        self.refuse(None)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        if self._head_since is None:
            self._head_since = self._now

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self.url += url
        most = self._demands.target_bytes
        if len(self.url) > most:
            self._stop(Problem(TARGET_TOO_LONG, f"the request's target is longer than {most:,} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer after a body: trailers are only counted."""
        if self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
            if len(self.headers) > self._demands.header_fields:
                self._stop(_head_too_large(self._demands))
        else:
            self._fields += 1
            self._size += len(name) + len(value) + 4
            if self._fields > self._demands.header_fields or self._size > self._demands.head_bytes:
                self._stop(_head_too_large(self._demands))

    def on_headers_complete(self) -> None:
        """A request begins."""
        parser = self.parser
        if parser.should_upgrade():
            if parser.get_method() == b"CONNECT":
                self._stop(Problem(BAD_REQUEST, "CONNECT is not supported: this server is not a proxy"))
            return
        asked = self._asked
        if len(asked) >= MOST_PIPELINED:
            self._stop(Problem(BAD_REQUEST, f"more than {MOST_PIPELINED} requests wait for their answers"))
        fault, size = look_over(parser.get_http_version(), self.headers)
        self._fields, self._size = len(self.headers), size + len(self.url)
        if self._size > self._demands.head_bytes:
            self._stop(_head_too_large(self._demands))
        if fault is not None:
            self._stop(Problem(BAD_REQUEST, fault))
        client = client_of(self.scope)  # type: ignore[arg-type]
        if self.owner.submit is not None and not asked and self._may_be_submit():
            self._early = b""
        else:
            super().on_headers_complete()
        self._in_head, self._head_since = False, None
        self._fed = self._received = 0
        self._stalled = 0.0
        if not asked:
            self._turn_since = self._now
        asked.append(client)

    def _may_be_submit(self) -> bool:
        """Whether this is a `POST /tasks` on a connection that does nothing else and is kept."""
        return (
            self.url == b"/tasks"
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.expect_100_continue
            and not self.flow.write_paused
            and (self.cycle is None or self.cycle.response_complete)
        )

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._fed = 0
        self._received += len(body)
        if self._early is None:
            super().on_body(body)
        else:
            self._early += body

    def on_message_complete(self) -> None:
        """A request has arrived completely."""
        if self._in_head:  # it asks for another protocol: read it again
            return
        self._in_head, self._fed = True, 0
        if self._asked:
            self._asked[-1].arrived = True
        if not self._submit():
            self._pass_on()
            super().on_message_complete()

    def _submit(self) -> bool:
        """Have the request answered without the application, if that can be."""
        cycle, submit = self._own, self.owner.submit
        if submit is None or self._early is None:
            return False
        cycle.future = submit(self.headers, self._early, self._answer)
        if cycle.future is None:
            return False
        self._early, cycle.response_complete = None, False
        self.cycle = cycle  # type: ignore[assignment]  # further requests wait for it
        return True

    def _answer(self, status: int, headers: Pairs, body: bytes) -> bool:
        cycle = self._own
        if cycle.disconnected:
            return False
        parts = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:  # the server is draining
            parts.append(b"connection: close\r\n")
        self.transport.write(b"".join((*parts, b"\r\n", body)))
        cycle.response_complete, cycle.future = True, None
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()
        return True

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the request again without its Upgrade; `rest` is what follows its head.

        RFC 9110, section 7.8, allows this. httptools skips the body of such a request, and reads nothing more.
        Java's client asks for HTTP/2 like this by default.
        """
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._parse(b"\r\n".join([*lines, b"", b""]) + rest)

    # Answering --------------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """A request is answered; the next one's turn has come."""
        asked = self._asked
        if asked:
            asked.popleft()
        now = self._free_since = self.loop.time()
        if asked:
            self._turn_since = now
        else:
            self.owner.move(self, _Place.WAITING)
        if self.pipeline:
            super().on_response_complete()
        else:  # without uvicorn's timer for each idle connection: `look` closes these
            self.server_state.total_requests += 1
            if not self.transport.is_closing():
                self.flow.resume_reading()
        if self._refusing and not asked:
            self._end()

    def resume_writing(self) -> None:
        """The client has read most of what was queued for it."""
        self._read, self._unread_for = 0, 0.0
        super().resume_writing()

    # Limits -----------------------------------------------------------------------------------------------------------

    def look(self, now: float, passed: float, last_call: float) -> None:
        """Enforce the limits; `passed` is the seconds since the last check."""
        demands = self._demands
        if self._reads_too_slowly(passed):
            self._cut("slow-reader")
        elif self._unsent and not self._asked:
            self._free_since = now  # it is still being answered
        elif self._cut_at is not None:
            if now >= self._cut_at:
                self.owner.remove(self)
                self.transport.abort()
        elif self._asked:
            self._look_at_request(now, passed, last_call)
        elif not self._in_head:  # its answer did not wait for the whole body
            if now - self._free_since > demands.linger:
                self.refuse(None)
        elif self._head_since is not None:
            if now - max(self._head_since, self._free_since) > demands.head:
                detail = f"the head of the request took longer than {demands.head:g} s"
                self.refuse(Problem(REQUEST_TIMEOUT, detail, headers={"Retry-After": "1"}))
        elif now - self._free_since > (demands.head if self.cycle is None else demands.idle):
            self._cut("idle")

    def _look_at_request(self, now: float, passed: float, last_call: float) -> None:
        demands, client = self._demands, self._asked[0]
        if now >= last_call:
            client.expire("this process is shutting down")
        if now - self._turn_since > demands.request:
            client.expire(f"the request took longer than {demands.request:g} s")
        if self.place is _Place.RECEIVING and len(self._asked) == 1 and not self.flow.read_paused:
            self._stalled += passed
            if self._stalled > demands.stall + self._received / demands.least_rate:
                client.expire(f"its body arrived at less than {demands.least_rate:,} bytes a second")

    def _reads_too_slowly(self, passed: float) -> bool:
        demands, unsent = self._demands, self.transport.get_write_buffer_size()
        if not unsent:
            self._unsent, self._read, self._unread_for = 0, 0, 0.0
            return False
        self._read += max(0, self._unsent - unsent)
        self._unsent = unsent
        self._unread_for += passed
        return self._unread_for > demands.stall + self._read / demands.least_rate

    def make_room(self) -> None:
        """Another connection needs the place."""
        if self.place is _Place.RECEIVING:  # the reader of the body answers the request
            self._asked[-1].expire("other clients need this connection", TOO_MANY_CONNECTIONS)
            self.owner.move(self, _Place.ANSWERING)
            self.refuse(None)
        else:
            self._cut("too-many")

    def refuse(self, why: Problem | None) -> None:
        """Read nothing more, and end with this answer, if any, after those in progress."""
        if self._refusing:
            return
        self._refusing, self._refusal = True, why
        if why is not None:
            metrics.HTTP_CUT.labels(why.kind.slug).inc()
        if not self._asked:
            self._end()

    def _stop(self, why: Problem) -> None:
        self._fault = why
        raise _Refused

    def _end(self) -> None:
        if self.transport.is_closing():
            return
        if self._refusal is not None:
            self.transport.write(last_answer(self._refusal))
        # The client may still be sending. What it sends is dropped for a while: closed at once, the connection would be
        # reset, and the client might never read the answer.
        with suppress(OSError):  # the client may have reset the connection already
            self.transport.write_eof()
        self.flow.resume_reading()
        self._cut_at = self.loop.time() + self._demands.linger
        self.owner.move(self, _Place.ENDING)

    def _cut(self, why: str) -> None:
        metrics.HTTP_CUT.labels(why).inc()
        self.owner.remove(self)
        self.transport.abort()


def _head_too_large(demands: Demands) -> Problem:
    most = f"{demands.header_fields} fields and {demands.head_bytes:,} bytes"
    return Problem(HEAD_TOO_LARGE, f"the head of the request is larger than the limit: {most}")
