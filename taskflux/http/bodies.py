"""Reading request bodies: what they may be, and how much of them is taken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from taskflux.http.problems import BAD_REQUEST, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, Problem

Headers = Mapping[bytes, bytes]

JSON_TYPES: Final = frozenset({"application/json"})
NDJSON_TYPES: Final = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonl"}
)

_USUAL: Final = b"application/json"


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """The request's headers by lower-case name.

    Raises:
        Problem: 400, a header that decides what the request means is given twice.
    """
    pairs: list[tuple[bytes, bytes]] = scope["headers"]
    headers = dict(pairs)
    if len(headers) < len(pairs) and sum(name == b"idempotency-key" for name, _ in pairs) > 1:
        raise Problem(BAD_REQUEST, "Idempotency-Key is given more than once: give it once")
    return headers


def media_type(headers: Headers, accepted: frozenset[str]) -> str:
    """The body's media type, one of `accepted`.

    A missing Content-Type is refused too: it is what a page of another site can make a browser send.

    Raises:
        Problem: 415.
    """
    given = headers.get(b"content-type", b"")
    if b"content-encoding" in headers and headers[b"content-encoding"].lower() != b"identity":
        raise Problem(UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not taken: send it without Content-Encoding")
    if given == _USUAL and "application/json" in accepted:
        return "application/json"
    essence, _, parameters = given.decode("latin-1").lower().partition(";")
    essence = essence.strip()
    wanted = " or ".join(sorted(accepted & {"application/json", "application/x-ndjson"}))
    if essence not in accepted:
        said = f"Content-Type is {essence[:100]!r}" if essence else "there is no Content-Type"
        raise Problem(UNSUPPORTED_MEDIA_TYPE, f"{said}: send the body as {wanted}", headers={"Accept": wanted})
    charset = parameters.replace(" ", "").replace('"', "")
    if charset.startswith("charset=") and charset not in ("charset=utf-8", "charset=utf8", "charset=us-ascii"):
        raise Problem(UNSUPPORTED_MEDIA_TYPE, f"{charset[:100]}: JSON is UTF-8 (RFC 8259, section 8.1)")
    return essence


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body, at most `limit` bytes.

    Raises:
        Problem: 413, as soon as it is known.
        ClientDisconnect: the client went away.
    """
    announced = headers.get(b"content-length", b"")
    if len(announced) > 18 or (announced.isdigit() and int(announced) > limit):
        raise too_large("the body", limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message["body"]
        if len(body) > limit:
            raise too_large("the body", limit)
        return body
    return await _read_on(message, receive, limit)


async def _read_on(message: Mapping[str, object], receive: Receive, limit: int) -> bytes:
    parts = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        assert isinstance(part, bytes)
        parts += part
        if len(parts) > limit:
            raise too_large("the body", limit)
        if not message.get("more_body"):
            return bytes(parts)
        message = await receive()


async def stream_body(receive: Receive) -> AsyncIterator[bytes]:
    """The parts of a body as they arrive.

    Raises:
        ClientDisconnect: the client went away before the end.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        if part := message.get("body", b""):
            yield part


def too_large(what: str, limit: int) -> Problem:
    """The problem of a body or item above its limit (bytes)."""
    return Problem(TOO_LARGE, f"{what} is larger than {limit:,} bytes, the most that is taken here")
