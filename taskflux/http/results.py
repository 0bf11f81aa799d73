"""The answer of a batch, sent while its results come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.types import Send

from taskflux.http.answers import JSON

PIECE: Final = 64 * 1024
"""Bytes that are gathered before they are sent."""


@dataclass(frozen=True, slots=True)
class Form:
    """How results stand beside each other."""

    media_type: bytes
    opening: bytes
    between: bytes
    closing: bytes


ARRAY: Final = Form(JSON, b"[", b",\n", b"]\n")
NDJSON: Final = Form(b"application/x-ndjson", b"", b"\n", b"\n")


class Results:
    """Held back until `release`, as long as they are fewer than `hold` bytes.

    A client that reads only after it has sent everything would wait for us while we wait for it.
    """

    def __init__(self, send: Send, form: Form, hold: int) -> None:
        self._send = send
        self._form = form
        self._hold = hold
        self._waiting = bytearray()
        self._next = form.opening
        self._started = False

    async def write(self, results: Sequence[bytes]) -> None:
        """Add results, each a JSON text."""
        if results:
            self._waiting += self._next + self._form.between.join(results)
            self._next = self._form.between
        if len(self._waiting) > self._hold:
            await self._flush(more=True)

    async def release(self) -> None:
        """The request has ended: from now on results go out as they come."""
        self._hold = PIECE
        await self.write(())

    async def end(self) -> None:
        """There are no more."""
        empty = self._next is self._form.opening
        self._waiting += (self._form.opening + self._form.closing).lstrip() if empty else self._form.closing
        await self._flush(more=False)

    async def _flush(self, *, more: bool) -> None:
        if not self._started:
            self._started = True
            headers = [(b"content-type", self._form.media_type)]
            await self._send({"type": "http.response.start", "status": 202, "headers": headers})
        body, self._waiting = bytes(self._waiting), bytearray()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
