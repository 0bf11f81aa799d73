"""JSON over HTTP: request bodies, what they may be and how much of them is taken; and answers."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from taskflux.http.problems import BAD_REQUEST, MALFORMED_JSON, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, Problem

Headers = Mapping[bytes, bytes]

JSON_TYPES: Final = frozenset({"application/json"})
NDJSON_TYPES: Final = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonl"}
)

JSON: Final = b"application/json"
_BOM: Final = b"\xef\xbb\xbf"


def _refuse_constant(name: str) -> object:
    raise Problem(MALFORMED_JSON, f"{name} is no JSON value (RFC 8259, section 6)")


_decode: Final = json.JSONDecoder(parse_constant=_refuse_constant).decode


def parse_json(body: bytes) -> Any:
    """The JSON document in `body`.

    Raises:
        Problem: 400, saying where it stops being JSON.
    """
    try:
        return _decode(body.removeprefix(_BOM).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Problem(MALFORMED_JSON, f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Problem(MALFORMED_JSON, f"{error.msg} at {where}" if body.strip() else "the body is empty") from None
    except RecursionError:
        raise Problem(MALFORMED_JSON, "it is nested too deeply") from None
    except ValueError:  # a guard of Python's: turning digits into an integer takes quadratic time
        raise Problem(MALFORMED_JSON, "it holds a whole number of more than 4,300 digits") from None


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
    if b"content-encoding" in headers and headers[b"content-encoding"].lower() != b"identity":
        raise Problem(UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not taken: send it without Content-Encoding")
    essence, _, parameters = headers.get(b"content-type", b"").decode("latin-1").lower().partition(";")
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
        ClientDisconnect: the client disconnected.
    """
    announced = headers.get(b"content-length", b"")
    if len(announced) > 18 or (announced.isdigit() and int(announced) > limit):
        raise too_large("the body", limit)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large("the body", limit)
    return bytes(body)


async def stream_body(receive: Receive) -> AsyncIterator[bytes]:
    """The parts of a body as they arrive.

    Raises:
        ClientDisconnect: the client disconnected before the end.
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


_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?P<offset>[Zz]|[+-][0-9]{2}:[0-9]{2})?"
)


def moment(value: object) -> datetime:
    """The time that a text says, in UTC.

    Raises:
        ValueError: with a sentence; it is none as RFC 3339 writes it.
        OverflowError: it is beyond the years that can be reckoned with.
    """
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be a time as RFC 3339 writes it, for example 2030-01-31T09:00:00Z")
    if match["offset"] is None:
        raise ValueError("has no offset from UTC: end it with Z or, for example, +02:00")
    try:
        return datetime.fromisoformat(match[0].upper()).astimezone(UTC)
    except ValueError as error:
        raise ValueError(f"is no time that exists: {error}") from None


async def read_json(scope: Scope, receive: Receive, limit: int) -> tuple[Headers, Any]:
    """The request's headers, and the JSON document that it brings in at most `limit` bytes.

    Raises:
        Problem: 400, 413 or 415.
        ClientDisconnect: the client disconnected.
    """
    headers = headers_of(scope)
    if headers.get(b"content-type") != JSON or b"content-encoding" in headers:  # most requests say just this
        media_type(headers, JSON_TYPES)
    return headers, parse_json(await read_body(headers, receive, limit))


async def json_object(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object in the body; no body is an empty one.

    Raises:
        Problem: 400, 413 or 415.
    """
    headers = headers_of(request.scope)
    body = await read_body(headers, request.receive, limit)
    if not body:
        return {}
    media_type(headers, JSON_TYPES)
    document = parse_json(body)
    if not isinstance(document, dict):
        raise Problem(BAD_REQUEST, "the body must be a JSON object")
    return document


def path_id(request: Request, name: str, unknown: Callable[[str], Problem]) -> UUID:
    """The id in a request's path.

    Raises:
        Problem: what `unknown` makes of the text, which can be no id.
    """
    text: str = request.path_params[name]
    if len(text) == 36:  # UUID() takes other spellings, too
        with suppress(ValueError):
            return UUID(text)
    raise unknown(text)


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


def json_answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document as an answer."""
    return Response(to_json(document), status, headers, JSON.decode())
