"""HTTP answers of bounded size and time, so that a hostile or broken server cannot exhaust the process.

A body is unpacked while it is read, and no further than its reader needs. An oversized or unreadable body counts as
empty; the status alone decides.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskflux.providers.provider import Sending
from taskflux.telemetry import metrics

if TYPE_CHECKING:
    import httpx  # most handlers need none: the clients import it

UNPACKED: Final[Mapping[str, str]] = {"accept-encoding": "identity"}
"""Headers that ask for a body as it is. One packed by gzip is read all the same."""


class Answer(NamedTuple):
    """What a server said; `headers` by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Body:
    """A body that is gathered while it is read, up to `most` bytes; `coding` is its Content-Encoding."""

    def __init__(self, coding: str | None, most: int) -> None:
        self._coding = (coding or "identity").strip().lower()
        self._most = most
        self._gzip = zlib.decompressobj(wbits=31) if self._coding in ("gzip", "x-gzip") else None
        self._gathered = bytearray()

    def add(self, chunk: bytes) -> bool:
        """Take what was read; false where nothing that follows counts."""
        room = self._most + 1 - len(self._gathered)  # one more than is allowed shows that it is too much
        try:
            self._gathered += self._gzip.decompress(chunk, room) if self._gzip else chunk[:room]
        except zlib.error:
            self._coding = "broken"
        if self._coding not in ("identity", "gzip", "x-gzip") or len(self._gathered) > self._most:
            self._gathered.clear()
            return False
        return self._gzip is None or not self._gzip.eof

    def whole(self) -> bytes:
        """All of it."""
        return bytes(self._gathered)


async def read(response: httpx.Response, most: int) -> Answer:
    """The answer that a request sent with `stream=True` got, with a body of at most `most` bytes."""
    body = Body(response.headers.get("content-encoding"), most)
    try:
        async for chunk in response.aiter_raw():
            if not body.add(chunk):
                break
    finally:
        await response.aclose()
    return Answer(response.status_code, response.headers, body.whole())


async def ask(
    http: httpx.AsyncClient,
    request: httpx.Request,
    server: str | None,
    *,
    seconds: float,
    most: int,
    sending: Sending | None = None,
) -> Answer:
    """Send `request`, and read its answer.

    Args:
        http: whose timeouts bound the wait for a connection.
        request: what is sent.
        server: the metrics' name of who is asked, where new connections are counted.
        seconds: that it may take from the first byte sent to the last one read, however steadily they come.
        most: bytes of a body.
        sending: told when the first byte of the request may leave.

    Raises:
        TimeoutError: it took too long.
        httpx.RequestError: see there.
    """
    async with asyncio.timeout(None) as limit:

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            """Httpcore's `trace` extension."""
            if event == "connection.connect_tcp.complete" and server is not None:
                metrics.OPENED.labels(server).inc()
            # A proxy's CONNECT is still on the way to the server.
            elif event.endswith(".send_request_headers.started") and info["request"].method != b"CONNECT":
                limit.reschedule(asyncio.get_running_loop().time() + seconds)
                if sending is not None:
                    sending.begin()

        request.extensions["trace"] = trace
        return await read(await http.send(request, stream=True), most)
