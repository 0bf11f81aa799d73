"""A lean HTTP/1.1 client: one request in flight on a connection that is kept, and nothing parsed that is not needed."""

from __future__ import annotations

import asyncio
from typing import Self, cast

import httptools

from taskflux.local.ports import LOOPBACK

KEY = "a-key-of-the-benchmarks-0123456789abcdefghij"
"""What ingest asks for: the check of a key is part of what a submission costs."""


def post(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """The bytes of a POST."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {LOOPBACK}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        f"Authorization: Bearer {KEY}",
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


class Connection(asyncio.Protocol):
    """A connection to a service on this machine."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._body = bytearray()

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to `port`."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, LOOPBACK, port)
        return connection

    async def ask(self, request: bytes) -> int:
        """Send a whole request; the status of its answer.

        Raises:
            ConnectionError: the service hung up.
        """
        if self._transport is None:
            raise ConnectionError("the service hung up")
        self._body.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    @property
    def body(self) -> bytes:
        """The body of the last answer."""
        return bytes(self._body)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    # What the event loop and the parser call ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derives from nothing

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the service hung up"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        answer, status = self._answer, self._parser.get_status_code()
        # The parser is for one message; a fresh one costs less than finding where the next begins.
        self._parser = httptools.HttpResponseParser(self)
        if answer is not None and not answer.done():
            answer.set_result(status)
