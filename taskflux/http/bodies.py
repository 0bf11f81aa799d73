"""JSON over HTTP: request bodies, their forms and limits; and responses."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar, TypeVarTuple
from uuid import UUID

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from taskflux.http.problems import (
    BAD_REQUEST,
    BUSY,
    INTERNAL,
    INVALID_REPLAY,
    INVALID_TASK,
    MALFORMED_JSON,
    PROBLEM,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    Kind,
    Problem,
    field_error,
    not_valid,
)
from taskflux.tasks.bounds import (
    ESCAPE,
    LARGE,
    MAX_DEPTH,
    UTF_8_BOM,
    VALUE_BYTES,
    OutOfBounds,
    TooDeep,
    TooManyValues,
    check,
    check_characters,
    is_utf_16,
)
from taskflux.telemetry.logs import frames

log = logging.getLogger(__name__)

Headers = Mapping[bytes, bytes]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

JSON_TYPES: Final = frozenset({"application/json"})
NDJSON_TYPES: Final = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonl"}
)

JSON: Final = b"application/json"


def _refuse_constant(name: str) -> object:
    raise Problem(MALFORMED_JSON, f"{name} is not a JSON value (RFC 8259, section 6)")


_decoder: Final = json.JSONDecoder(parse_constant=_refuse_constant)


SMALL: Final = 64 * 1024
"""Bytes that a request may hold when only the last eighth of the bytes in flight is free."""


@dataclass(slots=True, eq=False)
class Flight:
    """The bytes of bodies and documents that all requests hold together, and the most that they may."""

    most: int
    bytes: int = 0


@dataclass(slots=True, eq=False)
class Held:
    """The bytes in flight that one request holds; who serves the request releases them when it ends."""

    _flight: Flight
    _bytes: int = 0

    @property
    def scarce(self) -> bool:
        """Whether all requests together hold more than half of the limit."""
        return self._flight.bytes > self._flight.most // 2

    def take(self, size: int) -> None:
        """Hold `size` bytes more.

        Raises:
            Problem: 503, too many are in flight.
        """
        self.check(size)
        self._flight.bytes += size
        self._bytes += size

    def check(self, size: int) -> None:
        """The same for what is held only until the caller waits for something."""
        flight = self._flight
        limit = flight.most if self._bytes + size <= SMALL else flight.most - flight.most // 8
        if flight.bytes + size > limit:
            detail = "this process is at its limit for requests in flight: send this one again"
            raise Problem(BUSY, detail, headers={"Retry-After": str(BUSY_AGAIN)}, extra={"retryAfter": BUSY_AGAIN})

    def keep(self, size: int) -> None:
        """Hold `size` bytes of a response: what was done is reported, however much is in flight."""
        self._flight.bytes += size
        self._bytes += size

    def give(self, size: int) -> None:
        """Release `size` bytes."""
        size = min(size, self._bytes)  # a batch's chunk may end after its request
        self._flight.bytes -= size
        self._bytes -= size

    def give_all(self) -> None:
        """Release all bytes."""
        self._flight.bytes -= self._bytes
        self._bytes = 0


class Bounded:
    """An application whose requests together hold at most so many bytes of bodies and documents.

    The bytes of a body count when they arrive, not when they are announced: an announcement takes no room from others.
    `held_by` returns what a request holds.
    """

    def __init__(self, app: ASGIApp, flight: Flight) -> None:
        self._app = app
        self._flight = flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        held = scope[_HELD] = Held(self._flight)
        try:
            await self._app(scope, receive, send)
        finally:
            held.give_all()


def held_by(scope: MutableMapping[str, Any]) -> Held:
    """What the request with this scope holds."""
    held: Held = scope[_HELD]
    return held


_HELD: Final = "taskflux.held"
BUSY_AGAIN: Final = 1
"""Seconds after which a request that found too many bytes in flight may be sent again."""

_beside = ThreadPoolExecutor(1, "large-body")  # so that one large document at a time is built


async def beside_loop(work: Callable[[*Ts], T], *given: *Ts) -> T:
    """`work(*given)`, in a thread for all work on `LARGE` bytes, so that livez is answered meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(_beside, work, *given)


def parse_json(body: bytes) -> Any:
    """The JSON document in `body`, once it is known to be within the bounds of `taskflux.tasks.bounds`.

    Raises:
        Problem: 400, saying where it stops being JSON; 413, it holds too many values.
    """
    weigh(body)
    return decode_json(body)


async def _parse_held(body: bytes, held: Held, invalid: Kind) -> Any:
    """The same; `held` is charged with the document before it is built."""
    if len(body) < LARGE:
        held.take(weigh(body, invalid))
        return decode_json(body, invalid)
    held.take(await beside_loop(weigh, body, invalid))
    return await beside_loop(decode_json, body, invalid)


def weigh(body: bytes, invalid: Kind = INVALID_TASK) -> int:
    """What the document in `body` will take in memory, in bytes.

    Raises:
        Problem: `invalid`, a field of it is nested too deeply; 400, all of it is; 413, it holds too many values.
    """
    try:
        return VALUE_BYTES * check(body, depth=MAX_DEPTH + 1) + _widening(body)  # a payload is one level below its task
    except TooManyValues as error:
        raise Problem(TOO_LARGE, f"{error}, the limit") from None
    except OutOfBounds as error:
        raise _out_of_bounds(error, invalid) from None


def _widening(body: bytes) -> int:
    """The bytes to hold in addition for texts that take more memory than their bytes.

    Python stores a text with 1, 2 or 4 bytes for every character, as the widest one needs: an emoji makes it four.
    Each byte held is counted as five bytes of memory. Two of them are for texts: the body's, and those in it.
    """
    plain, escaped = body.isascii(), ESCAPE in body
    if plain and not escaped:
        return 0
    width, characters = 1, len(body)
    if escaped:
        width = 4 if rb"\ud" in body or rb"\uD" in body else 2
    if not plain:
        characters = len(body.translate(None, _CONTINUING))
        wide = body.translate(None, _LATIN)
        if wide:
            width = max(width, 4 if wide.translate(None, _THREE_BYTES) else 2)
    return 2 * max(0, width * characters - len(body)) // 5


_CONTINUING: Final = bytes(range(0x80, 0xC0))
_LATIN: Final = bytes(range(0xC4))
"""Bytes that begin no UTF-8 character which takes more than one byte of memory."""
_THREE_BYTES: Final = bytes(range(0xC4, 0xF0))


def _out_of_bounds(error: OutOfBounds, invalid: Kind) -> Problem:
    """The problem for what no handler can read; it names the field."""
    if not error.path:
        return Problem(MALFORMED_JSON, str(error))
    said = f"is nested more than {MAX_DEPTH} deep" if isinstance(error, TooDeep) else str(error).removeprefix("it ")
    return not_valid(invalid, [field_error(error.path, said)])


WIDE: Final = "it is UTF-16, but JSON must be UTF-8 (RFC 8259, section 8.1)"


def decode_json(body: bytes, invalid: Kind = INVALID_TASK) -> Any:
    """The JSON document in a `body` that was weighed.

    Raises:
        Problem: 400, saying where it stops being JSON; `invalid`, naming the field that holds half of a character.
    """
    try:
        text = body.removeprefix(UTF_8_BOM).decode("utf-8")
        # Most texts begin with an object and end with it; `decode` looks for spaces around it first, at a third of the
        # cost.
        document, end = _decoder.raw_decode(text) if text.startswith("{") else (None, -1)
        if end != len(text):
            document = _decoder.decode(text)
        if ESCAPE in body:
            check_characters(body, document)
        return document
    except UnicodeDecodeError as error:
        said = WIDE if is_utf_16(body) else f"byte {error.start + 1} is not UTF-8"
        raise Problem(MALFORMED_JSON, said) from None
    except json.JSONDecodeError as error:
        said = f"{error.msg} at line {error.lineno}, column {error.colno}"
        empty = not body.removeprefix(UTF_8_BOM).strip()
        raise Problem(MALFORMED_JSON, "the body is empty" if empty else WIDE if is_utf_16(body) else said) from None
    except OutOfBounds as error:
        raise _out_of_bounds(error, invalid) from None
    except ValueError:  # Python's own limit: converting digits to an integer takes quadratic time
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
        raise Problem(UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not supported: send it without Content-Encoding")
    essence, _, parameters = headers.get(b"content-type", b"").decode("latin-1").lower().partition(";")
    essence = essence.strip()
    wanted = " or ".join(sorted(accepted & {"application/json", "application/x-ndjson"}))
    if essence not in accepted:
        said = f"Content-Type is {essence[:100]!r}" if essence else "there is no Content-Type"
        raise Problem(UNSUPPORTED_MEDIA_TYPE, f"{said}: send the body as {wanted}", headers={"Accept": wanted})
    for parameter in parameters.replace(" ", "").replace('"', "").split(";"):
        if parameter.startswith("charset=") and parameter not in ("charset=utf-8", "charset=utf8", "charset=us-ascii"):
            raise Problem(UNSUPPORTED_MEDIA_TYPE, f"{parameter[:100]}: JSON is UTF-8 (RFC 8259, section 8.1)")
    return essence


async def read_body(headers: Headers, receive: Receive, limit: int, held: Held) -> bytes:
    """The whole body, at most `limit` bytes, which `held` is charged with.

    Raises:
        Problem: 413, as soon as it is known; 503, too much is in flight.
        ClientDisconnect: the client disconnected.
    """
    if _announced(headers) > limit:
        raise too_large("the body", limit)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        if part := message.get("body", b""):
            held.take(len(part))
            if len(body) + len(part) > limit:
                raise too_large("the body", limit)
            if not more and not body:  # most bodies come in one part
                return part  # type: ignore[no-any-return]
            body += part
    return bytes(body)


async def stream_body(headers: Headers, receive: Receive, limit: int, held: Held) -> AsyncIterator[bytes]:
    """The parts of a body as they arrive, at most `limit` bytes, which `held` is charged with.

    Raises:
        Problem: 413, as soon as it is known; 503, too much is in flight.
        ClientDisconnect: the client disconnected before the end.
    """
    if _announced(headers) > limit:
        raise too_large("the body", limit)
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        if part := message.get("body", b""):
            held.take(len(part))
            size += len(part)
            if size > limit:
                raise too_large("the body", limit)
            yield part


def _announced(headers: Headers) -> int:
    """The body's bytes by its Content-Length; 0 without one."""
    length = headers.get(b"content-length", b"")
    return int(length[:18]) if length.isdigit() else 0


def too_large(what: str, limit: int) -> Problem:
    """The problem of a body or item above its limit (bytes)."""
    return Problem(TOO_LARGE, f"{what} is larger than {limit:,} bytes, the limit")


async def read_json(
    scope: Scope, receive: Receive, limit: int, invalid: Kind = INVALID_TASK
) -> tuple[Headers, Any, int]:
    """The request's headers, its JSON document of at most `limit` bytes, and the number of these bytes.

    Raises:
        Problem: 400, 413, 415, 503, or `invalid`, naming a field that cannot be read.
        ClientDisconnect: the client disconnected.
    """
    headers = headers_of(scope)
    if headers.get(b"content-type") != JSON or b"content-encoding" in headers:  # most requests say just this
        media_type(headers, JSON_TYPES)
    held = held_by(scope)
    body = await read_body(headers, receive, limit, held)
    return headers, await _parse_held(body, held, invalid), len(body)


async def json_object(request: Request, limit: int, invalid: Kind = INVALID_REPLAY) -> tuple[dict[str, Any], int]:
    """The JSON object in the body, and the body's size in bytes; an empty body is an empty object.

    Raises:
        Problem: 400, 413, 415, 503, or `invalid`, naming a field that cannot be read.
    """
    headers, held = headers_of(request.scope), held_by(request.scope)
    body = await read_body(headers, request.receive, limit, held)
    if not body:
        return {}, 0
    media_type(headers, JSON_TYPES)
    document = await _parse_held(body, held, invalid)
    if not isinstance(document, dict):
        raise Problem(BAD_REQUEST, "the body must be a JSON object")
    return document, len(body)


def path_id(request: Request, name: str, unknown: Callable[[str], Problem]) -> UUID:
    """The id in a request's path.

    Raises:
        Problem: what `unknown` returns for a text that cannot be an id.
    """
    text: str = request.path_params[name]
    if len(text) == 36:  # UUID() takes other spellings, too
        with suppress(ValueError):
            return UUID(text)
    raise unknown(text)


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def to_json(document: object) -> bytes:
    """A document as JSON: ASCII, so that text that UTF-8 cannot encode (lone surrogates) passes unchanged.

    Raises:
        ValueError: it holds a number that JSON does not have.
    """
    return _encode(document).encode("ascii")


def problem_answer(problem: Problem) -> Response:
    """The response for a problem."""
    return Response(to_json(problem.document()), problem.status, problem.headers, PROBLEM)


def bug_answer(method: str, error: Exception) -> Response:
    """The response for a bug of ours. It is logged without its text and without values: they may be personal data."""
    log.error("%s while answering %s\n%s", type(error).__name__, method, frames(error))
    return problem_answer(Problem(INTERNAL, "this is an internal error of TaskFlux; its log says where it happened"))


def json_answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a JSON document."""
    return Response(to_json(document), status, headers, JSON.decode())
