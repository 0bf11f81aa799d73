"""HTTP answers of bounded size and time, so that a hostile or broken server cannot exhaust the process.

A body is decompressed while it is read, and no further than its reader needs. An oversized or unreadable body counts as
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
    import httpx  # most handlers do not need it: the clients import it

UNPACKED: Final[Mapping[str, str]] = {"accept-encoding": "identity"}
"""Headers that ask for an uncompressed body. One compressed by gzip is read, too."""


class Answer(NamedTuple):
    """A server's answer; `headers` by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Body:
    """A body that is collected while it is read, up to `most` bytes; `coding` is its Content-Encoding."""

    def __init__(self, coding: str | None, most: int) -> None:
        self._coding = (coding or "identity").strip().lower()
        self._most = most
        self._gzip = zlib.decompressobj(wbits=31) if self._coding in ("gzip", "x-gzip") else None
        self._collected = bytearray()

    def add(self, chunk: bytes) -> bool:
        """Add what was read; false if the rest is not needed."""
        room = self._most + 1 - len(self._collected)  # one more than is allowed shows that it is too much
        try:
            self._collected += self._gzip.decompress(chunk, room) if self._gzip else chunk[:room]
        except zlib.error:
            self._coding = "broken"
        if self._coding not in ("identity", "gzip", "x-gzip") or len(self._collected) > self._most:
            self._collected.clear()
            return False
        return self._gzip is None or not self._gzip.eof

    def whole(self) -> bytes:
        """All of it."""
        return bytes(self._collected)


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
        http: its timeouts limit the wait for a connection.
        request: what is sent.
        server: the server's name in metrics, if new connections are counted.
        seconds: the time from the first byte sent to the last one read, at most.
        most: bytes of a body.
        sending: its `begin` is called when the first byte of the request may be sent.

    Raises:
        TimeoutError: it took too long.
        httpx.RequestError: as httpx raises it.
    """
    async with asyncio.timeout(None) as limit:

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            """Httpcore's `trace` extension."""
            if event == "connection.connect_tcp.complete" and server is not None:
                metrics.OPENED.labels(server).inc()
            # A proxy's CONNECT does not reach the server yet.
            elif event.endswith(".send_request_headers.started") and info["request"].method != b"CONNECT":
                limit.reschedule(asyncio.get_running_loop().time() + seconds)
                if sending is not None:
                    sending.begin()

        request.extensions["trace"] = trace
        return await read(await http.send(request, stream=True), most)
