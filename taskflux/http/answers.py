"""JSON answers, as plain ASGI messages: the way of a submit is too short to build response objects on it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from starlette.types import Send

JSON: Final = b"application/json"
PROBLEM: Final = b"application/problem+json"

RawHeaders = Iterable[tuple[bytes, bytes]]

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def to_json(document: object) -> bytes:
    """A document on the wire: ASCII, so that text which UTF-8 cannot carry (lone surrogates) passes as it came.

    Raises:
        ValueError: it holds a number that JSON does not know.
    """
    return _encode(document).encode("ascii")


def rfc3339(moment: datetime) -> str:
    """A moment in UTC with microseconds and a Z."""
    if moment.tzinfo is not UTC:  # what the store returns is
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"


async def answer(send: Send, status: int, body: bytes, media_type: bytes = JSON, headers: RawHeaders = ()) -> None:
    """Send a whole response."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})
