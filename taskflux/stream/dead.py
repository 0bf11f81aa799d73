"""What a record on `tasks.dlq` says: pure, and never raises on any bytes.

A dead task is `{"taskId", "taskType", "version", "errorClass", "attempts"}`: its reason may name a person and stays in
PostgreSQL. A poison record keeps key, value and headers untouched; behind its own headers stand ours, which say where
it came from and what is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from taskflux.stream.envelope import Poison, parse_claim, parse_object, to_json, trace_headers, trace_of
from taskflux.stream.record import Encoded, Headers, Record
from taskflux.stream.topics import is_task_type

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


@dataclass(frozen=True, slots=True)
class DeadTask:
    """A task whose row is `dead` at `version`; the row has the rest."""

    task_id: UUID
    task_type: str
    version: int
    error_class: str
    attempts: int
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a poison record stood; `timestamp` in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class DeadPoison:
    """A record that never became a task, byte for byte as it was.

    Of a dead letter that cannot be read, `error_class` is `MalformedDeadLetter` and `origin` its own place in the
    dead-letter topic.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    origin: Origin
    error_class: str
    reason: str


def encode_dead(task: DeadTask, key: str | None = None) -> Encoded:
    """The dead letter of a task."""
    body: dict[str, object] = {
        "taskId": str(task.task_id),
        "taskType": task.task_type,
        "version": task.version,
        "errorClass": task.error_class,
        "attempts": task.attempts,
    }
    return Encoded(
        (key or str(task.task_id)).encode("utf-8", "backslashreplace"),
        to_json(body),
        trace_headers(task.traceparent),
    )


def encode_poison(record: Record, poison: Poison) -> Encoded:
    """The dead letter of `record`; `decode_dead` gives back its bytes."""
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
    """What a record on the dead-letter topic is about."""
    poison = _poison(record)
    if poison is not None:
        return poison
    body = parse_object(record.value or b"")
    if isinstance(body, Poison):
        return _malformed(record, body.reason)
    claim = parse_claim(body)
    if isinstance(claim, Poison):
        return _malformed(record, claim.reason)
    task_type, error_class, attempts = body.get("taskType"), body.get("errorClass"), body.get("attempts")
    if not (isinstance(task_type, str) and is_task_type(task_type)):
        return _malformed(record, "taskType is missing or cannot be one")
    if not (isinstance(error_class, str) and error_class.isprintable() and 0 < len(error_class) <= _MAX_CLASS):
        return _malformed(record, "errorClass is missing or cannot be one")
    if type(attempts) is not int or not 0 <= attempts < 2**31:
        return _malformed(record, "attempts is missing or cannot be a count")
    task_id, version = claim
    return DeadTask(task_id, task_type, version, error_class, attempts, trace_of(record.headers))


def _poison(record: Record) -> DeadPoison | None:
    """Read from the end: a poison record may itself carry headers with our names."""
    headers = record.headers
    if tuple(name for name, _ in headers[-len(_ADDED) :]) != _ADDED:
        return None
    # PostgreSQL's text takes no NUL.
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
