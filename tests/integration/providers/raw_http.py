"""A server on loopback that reads one HTTP request at a time and answers it with bytes as they are."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress

Say = Callable[[asyncio.StreamWriter], Awaitable[None]]


def saying(*parts: bytes) -> Say:
    """Say these and hang up."""

    async def say(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return say


def endlessly(first: bytes, part: bytes, pause: float = 0.0) -> Say:
    """Say `first`, and `part` until the other side has had enough, `pause` seconds apart."""

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while not writer.is_closing():
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)

    return say


def answer(body: bytes, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """An answer whose length is right."""
    said = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d Said\r\n%bcontent-length: %d\r\n\r\n%b" % (status, said, len(body), body)


@asynccontextmanager
async def raw_http(say: Say, *, context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """The address of a server that answers by `say`, and the bodies of the requests that it has read."""
    read: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            read.append(await reader.readexactly(length))
            await say(writer)
        writer.transport.abort() if writer.is_closing() else writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=context)
    scheme = "http" if context is None else "https"
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", read
    finally:
        server.close()
        await server.wait_closed()
