"""A Kafka record, as it is received and as it is sent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import field
from enum import StrEnum
from json.encoder import encode_basestring_ascii
from typing import NamedTuple, NoReturn
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as FastUUID  # hashed and compared at a fraction of the time of Python's

from taskflux.stream.topics import is_task_type
from taskflux.tasks.bounds import (
    ESCAPE,
    MAX_DEPTH,
    UTF_8_BOM,
    OutOfBounds,
    TooManyValues,
    check,
    check_characters,
    is_utf_16,
)
from taskflux.tasks.fields import OPTIONAL

Headers = tuple[tuple[str, bytes | None], ...]
"""In the order of the record; a name may occur more than once."""


class Record(NamedTuple):
    """A record as Kafka delivered it.

    `timestamp` is in milliseconds since 1970. `epoch` is the consumer's own count of the logs it has read: it
    distinguishes a record of a recreated topic from one at the same offset of the former topic. `unreadable` says why
    the client could not parse it (an unknown codec, a header name that is not UTF-8).
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    epoch: int = 0
    unreadable: str = ""

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        return _size(self.key, self.value, self.headers)


class OutRecord(NamedTuple):
    """A record to be sent; its key decides the partition."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        return _size(self.key, self.value, self.headers)


class Encoded(NamedTuple):
    """The contents of a record for an envelope: `OutRecord(topic, *encoded)`."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def _size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    total = len(key or b"") + len(value or b"")
    for name, content in headers:
        total += len(name if name.isascii() else name.encode("utf-8", "replace")) + len(content or b"")
    return total


def record_identity(
    topic: str, partition: int, offset: int, timestamp: int, key: bytes | None, value: bytes | None
) -> str:
    """A name for a record, made of its place, its time (milliseconds since 1970) and its bytes.

    The place alone is not enough: a topic that was deleted and created again counts from 0.
    """
    digest = hashlib.sha256()
    for part in (topic.encode("utf-8", "replace"), key, value):
        digest.update(b"-" if part is None else b"%d:" % len(part) + part)
    return f"record:{partition}:{offset}:{timestamp}:{digest.hexdigest()}"


TRACEPARENT = "traceparent"
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_OURS = re.compile(
    rb'\{"taskId":"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"'
    rb',"taskType":"([a-z0-9._-]{1,100})","version":(0|[1-9][0-9]{0,8})(,"probe":true)?\}'
)
"""An envelope exactly as `encode` writes it, with a version that has no more digits than any in use."""
_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_CANONICAL = json.JSONEncoder(separators=(",", ":"), allow_nan=False, sort_keys=True).encode
_MAX_VERSION = 2**31 - 1
_MAX_FOREIGN_ID = 200


class PoisonClass(StrEnum):
    """Why a record cannot become a task; dead letters are grouped by these names."""

    NO_VALUE = "NoValue"
    UNREADABLE = "Unreadable"
    NOT_JSON = "NotJson"
    UNKNOWN_SHAPE = "UnknownShape"
    UNKNOWN_TYPE = "UnknownType"
    TOO_LARGE = "TooLarge"
    INVALID_PAYLOAD = "InvalidPayload"
    ID_REUSED = "IdReused"


class Envelope(NamedTuple):
    """One of our own records: run the task, if its row is still at `version`.

    `traceparent` is W3C trace context; `probe`: the provider's own check may run instead of the task.
    """

    task_id: UUID
    task_type: str
    version: int
    traceparent: str | None = None
    probe: bool = False


class DeadTask(NamedTuple):
    """A task whose row is `dead` at `version`; the row has the rest."""

    task_id: UUID
    task_type: str
    version: int
    error_class: str
    attempts: int
    traceparent: str | None = None


class Foreign(NamedTuple):
    """A task that another producer wrote, payload and all.

    `task_id` is the producer's. `payload` is a JSON text, compact and in ASCII: a NUL, which PostgreSQL refuses, stays
    escaped. `digest` is the SHA-256 of its meaning, independent of the order of names. `fields` are the optional ones
    beside a payload (`taskflux.tasks.fields`), unchanged.
    """

    task_id: str | None
    task_type: str
    payload: str
    digest: bytes
    record: Record
    traceparent: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)


class Poison(NamedTuple):
    """A record that can never run. `reason` is a sentence that does not quote the payload."""

    error_class: str
    reason: str


def encode(task: Envelope | DeadTask, key: str | None = None) -> Encoded:
    """The record of a task, or its dead letter; `key` decides the partition instead of the task id."""
    task_id, trace = str(task.task_id), task.traceparent
    body = f'{{"taskId":"{task_id}","taskType":{encode_basestring_ascii(task.task_type)},"version":{task.version}'
    if isinstance(task, DeadTask):
        body += f',"errorClass":{encode_basestring_ascii(task.error_class)},"attempts":{task.attempts}'
    elif task.probe:
        body += ',"probe":true'
    headers = ((TRACEPARENT, trace.encode("ascii", "replace")),) if trace else ()
    return Encoded((key or task_id).encode("utf-8", "backslashreplace"), f"{body}}}".encode("ascii"), headers)


def decode(record: Record, *, max_bytes: int, types: Collection[str] | None = None) -> Envelope | Foreign | Poison:
    """The envelope, foreign task or poison in `record`.

    `max_bytes` limits key, value and headers together. `types` are the types that this consumer runs; None accepts any
    valid name of a type (for the router).
    """
    if record.unreadable:
        return Poison(PoisonClass.UNREADABLE, record.unreadable)
    if record.size > max_bytes:
        return Poison(PoisonClass.TOO_LARGE, f"the record has {record.size} bytes, the limit is {max_bytes}")
    if record.value is None:
        return Poison(PoisonClass.NO_VALUE, "the record has no value")
    if ours := _OURS.fullmatch(record.value):
        task_id, kind, version, probe = ours.groups()
        if _runs(types, kind := kind.decode()):
            return Envelope(FastUUID(task_id.decode()), kind, int(version), trace_of(record.headers), probe is not None)
    body = _parse_object(record.value)
    if isinstance(body, Poison):
        return body
    task_type = body.get("taskType")
    if not isinstance(task_type, str):
        return Poison(PoisonClass.UNKNOWN_SHAPE, "taskType is missing or not a string")
    if not _runs(types, task_type):
        return Poison(PoisonClass.UNKNOWN_TYPE, f"no handler here runs the task type {task_type[:100]!a}")
    if "payload" in body:
        return _foreign(record, body, task_type)
    claim = _parse_claim(body)
    if isinstance(claim, Poison):
        return claim
    return Envelope(claim[0], task_type, claim[1], trace_of(record.headers), body.get("probe") is True)


def _runs(types: Collection[str] | None, task_type: str) -> bool:
    return is_task_type(task_type) if types is None else task_type in types


_WIDE = "the value is UTF-16, and JSON is UTF-8 (RFC 8259, section 8.1)"


def _parse_object(value: bytes) -> dict[str, object] | Poison:
    """`value` as a JSON object in UTF-8 (RFC 8259: no NaN, no Infinity), within the limits of every task."""
    try:
        check(value, depth=MAX_DEPTH + 1)  # the payload is one level below its record
        body = json.loads(value.removeprefix(UTF_8_BOM).decode("utf-8"), parse_constant=_refuse_constant)
        if ESCAPE in value:
            check_characters(value, body)
    except TooManyValues as error:
        return Poison(PoisonClass.TOO_LARGE, f"the value is too large: {error}")
    except OutOfBounds as error:
        return Poison(PoisonClass.NOT_JSON, f"the value is invalid: {error}")
    except UnicodeDecodeError as error:
        if is_utf_16(value):
            return Poison(PoisonClass.NOT_JSON, _WIDE)
        return Poison(PoisonClass.NOT_JSON, f"the value is not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        if is_utf_16(value):
            return Poison(PoisonClass.NOT_JSON, _WIDE)
        return Poison(PoisonClass.NOT_JSON, f"the value is not JSON at character {error.pos}: {error.msg}")
    except ValueError:  # an integer of more digits than Python converts, or NaN
        return Poison(PoisonClass.NOT_JSON, "the value holds a number that cannot be read")
    if not isinstance(body, dict):
        return Poison(PoisonClass.UNKNOWN_SHAPE, "the value is not a JSON object")
    return body


def _parse_claim(body: dict[str, object]) -> tuple[UUID, int] | Poison:
    """`taskId` and `version` of one of our own records."""
    text, version = body.get("taskId"), body.get("version")
    try:
        task_id = UUID(text) if isinstance(text, str) and len(text) == 36 else None
    except ValueError:
        task_id = None
    if task_id is None:
        return Poison(PoisonClass.UNKNOWN_SHAPE, "there is neither a payload nor a taskId that is a UUID")
    if type(version) is not int or not 0 <= version <= _MAX_VERSION:
        return Poison(PoisonClass.UNKNOWN_SHAPE, "there is neither a payload nor a version that counts from 0")
    return task_id, version


def trace_of(headers: Headers) -> str | None:
    """The last well-formed `traceparent` (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    for name, value in reversed(headers):
        if name == TRACEPARENT and value is not None and _TRACEPARENT.fullmatch(value):
            return value.decode("ascii")
    return None


def _foreign(record: Record, body: dict[str, object], task_type: str) -> Foreign | Poison:
    task_id = body.get("taskId")
    if type(task_id) is int:
        task_id = str(task_id)
    if task_id is not None and not (
        isinstance(task_id, str) and task_id.isprintable() and 0 < len(task_id) <= _MAX_FOREIGN_ID
    ):
        return Poison(PoisonClass.UNKNOWN_SHAPE, f"taskId is not a text of 1 to {_MAX_FOREIGN_ID} printable characters")
    try:
        payload, canonical = _ENCODE(body["payload"]), _CANONICAL(body["payload"])
    except ValueError:
        return Poison(PoisonClass.INVALID_PAYLOAD, "the payload holds a number that a double cannot represent")
    digest = hashlib.sha256(canonical.encode("ascii")).digest()
    fields = {name: body[name] for name in OPTIONAL if body.get(name) is not None}
    return Foreign(task_id, task_type, payload, digest, record, trace_of(record.headers), fields)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


MALFORMED = "MalformedDeadLetter"
_ADDED = (
    "taskflux-origin-topic",
    "taskflux-origin-partition",
    "taskflux-origin-offset",
    "taskflux-origin-timestamp",
    "taskflux-error-class",
    "taskflux-reason",
)
_MAX_REASON = 2000
_MAX_CLASS = 100


class Origin(NamedTuple):
    """Where a poison record came from; `timestamp` in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int


class DeadPoison(NamedTuple):
    """A record that never became a task, byte for byte.

    For a dead letter that cannot be read, `error_class` is `MalformedDeadLetter` and `origin` is its own place in the
    dead-letter topic.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    origin: Origin
    error_class: str
    reason: str


def encode_poison(record: Record, poison: Poison) -> Encoded:
    """The dead letter of `record`; `decode_dead` returns its bytes."""
    added = (
        record.topic,
        str(record.partition),
        str(record.offset),
        str(record.timestamp),
        poison.error_class[:_MAX_CLASS],
        poison.reason[:_MAX_REASON],
    )
    headers = record.headers + tuple(
        (name, text.encode("utf-8", "backslashreplace")) for name, text in zip(_ADDED, added, strict=True)
    )
    return Encoded(record.key, record.value, headers)


def decode_dead(record: Record) -> DeadTask | DeadPoison:
    """The dead task or poison record in a record of the dead-letter topic."""
    if record.unreadable:
        return _malformed(record, record.unreadable)
    poison = _poison(record)
    if poison is not None:
        return poison
    body = _parse_object(record.value or b"")
    if isinstance(body, Poison):
        return _malformed(record, body.reason)
    claim = _parse_claim(body)
    if isinstance(claim, Poison):
        return _malformed(record, claim.reason)
    task_type, error_class, attempts = body.get("taskType"), body.get("errorClass"), body.get("attempts")
    if not (isinstance(task_type, str) and is_task_type(task_type)):
        return _malformed(record, "taskType is missing or cannot be one")
    if not (isinstance(error_class, str) and error_class):
        return _malformed(record, "errorClass is missing or not a text")
    if type(attempts) is not int or not 0 <= attempts < 2**31:
        return _malformed(record, "attempts is missing or cannot be a count")
    task_id, version = claim
    return DeadTask(task_id, task_type, version, error_class, attempts, trace_of(record.headers))


def _poison(record: Record) -> DeadPoison | None:
    """Read from the end: a poison record may itself have headers with our names."""
    headers = record.headers
    if tuple(name for name, _ in headers[-len(_ADDED) :]) != _ADDED:
        return None
    # PostgreSQL's text type refuses NUL.
    texts = [(raw or b"").decode("utf-8", "replace").replace("\0", "\ufffd") for _, raw in headers[-len(_ADDED) :]]
    numbers = [_integer(text) for text in texts[1:4]]
    if None in numbers:
        return None
    partition, offset, timestamp = (number or 0 for number in numbers)
    return DeadPoison(
        record.key,
        record.value,
        headers[: -len(_ADDED)],
        Origin(texts[0], partition, offset, timestamp),
        texts[4],
        texts[5],
    )


def _integer(text: str) -> int | None:
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None


def _malformed(record: Record, reason: str) -> DeadPoison:
    return DeadPoison(
        record.key,
        record.value,
        record.headers,
        Origin(record.topic, record.partition, record.offset, record.timestamp),
        MALFORMED,
        reason,
    )
