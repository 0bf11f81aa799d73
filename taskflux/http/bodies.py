"""Reading request bodies: what they may be, and how much of them is taken."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from uuid import UUID

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from taskflux.http.answers import to_json
from taskflux.http.problems import BAD_REQUEST, MALFORMED_JSON, TOO_LARGE, UNKNOWN_TASK, UNSUPPORTED_MEDIA_TYPE, Problem
from taskflux.telemetry.logs import TASK

Headers = Mapping[bytes, bytes]

JSON_TYPES: Final = frozenset({"application/json"})
NDJSON_TYPES: Final = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonl"}
)

_USUAL: Final = b"application/json"


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


_UUID_LENGTH: Final = 36


def task_id(text: str) -> UUID:
    """The task id that stands in a path: the request is about this task, in the log, too.

    Raises:
        Problem: 404, no task can have this id.
    """
    try:
        if len(text) == _UUID_LENGTH:
            task = UUID(text)
            TASK.set(task)
            return task
    except ValueError:
        pass
    raise unknown_task(text[:100])


def unknown_task(text: str) -> Problem:
    """The problem of an id that no task of the caller has."""
    return Problem(UNKNOWN_TASK, f"no task has the id {text!r}; it may have been deleted after its retention")


def identifier(text: str) -> UUID | None:
    """The id that stands in a path, if it can be one."""
    try:
        return UUID(text) if len(text) == 36 else None
    except ValueError:
        return None


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


def json_answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document as an answer."""
    return Response(to_json(document), status, headers, "application/json")
