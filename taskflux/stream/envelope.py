"""What a record on `tasks.<type>` says: pure, and never raises on any bytes.

Ours is a claim check: key, a small JSON value `{"taskId", "taskType", "version"}` (a probe also has `"probe": true`)
and the header `traceparent`; the payload stays in PostgreSQL. A value with a `payload` is a foreign producer's, in
TaskStream's shape `{"taskId"?, "taskType", "payload"}`. Anything else is poison.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn
from uuid import UUID

from taskflux.stream.record import Encoded, Headers, Record
from taskflux.stream.topics import is_task_type

TRACEPARENT = "traceparent"
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_MAX_VERSION = 2**31 - 1
_MAX_FOREIGN_ID = 200


class PoisonClass(StrEnum):
    """Why a record cannot become a task; the bounded names that dead letters are grouped by."""

    NO_VALUE = "NoValue"
    UNREADABLE = "Unreadable"
    NOT_JSON = "NotJson"
    UNKNOWN_SHAPE = "UnknownShape"
    UNKNOWN_TYPE = "UnknownType"
    TOO_LARGE = "TooLarge"
    INVALID_PAYLOAD = "InvalidPayload"
    ID_REUSED = "IdReused"


@dataclass(frozen=True, slots=True)
class Envelope:
    """One of our own records: run the task's row, if it still stands at `version`.

    `traceparent` is W3C trace context, `probe` asks for the provider's own check in place of a task.
    """

    task_id: UUID
    task_type: str
    version: int
    traceparent: str | None = None
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Foreign:
    """A task that another producer wrote, payload and all; `payload` is the parsed JSON, `task_id` the producer's."""

    task_id: str | None
    task_type: str
    payload: object
    record: Record
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Poison:
    """A record that can never run. `reason` is a sentence; it quotes nothing of a payload."""

    error_class: str
    reason: str


def encode(envelope: Envelope, key: str | None = None) -> Encoded:
    """The record of `envelope`; `key` picks the partition in place of the task id."""
    body: dict[str, object] = {
        "taskId": str(envelope.task_id),
        "taskType": envelope.task_type,
        "version": envelope.version,
    }
    if envelope.probe:
        body["probe"] = True
    return Encoded(
        (key or str(envelope.task_id)).encode("utf-8", "backslashreplace"),
        to_json(body),
        trace_headers(envelope.traceparent),
    )


def decode(record: Record, *, max_bytes: int, types: Collection[str] | None = None) -> Envelope | Foreign | Poison:
    """What `record` asks for.

    `max_bytes` bounds key, value and headers together. `types` are the types that this consumer runs; None takes any
    name that could be a type (the router's case).
    """
    if record.unreadable:
        return Poison(PoisonClass.UNREADABLE, record.unreadable)
    if record.size > max_bytes:
        return Poison(PoisonClass.TOO_LARGE, f"the record has {record.size} bytes, the limit is {max_bytes}")
    if record.value is None:
        return Poison(PoisonClass.NO_VALUE, "the record has no value")
    body = parse_object(record.value)
    if isinstance(body, Poison):
        return body
    task_type = body.get("taskType")
    if not isinstance(task_type, str):
        return Poison(PoisonClass.UNKNOWN_SHAPE, "taskType is missing or not a string")
    if not (is_task_type(task_type) if types is None else task_type in types):
        return Poison(PoisonClass.UNKNOWN_TYPE, f"no handler here runs the task type {task_type[:100]!a}")
    if "payload" in body:
        return _foreign(record, body, task_type)
    return _ours(record, body, task_type)


def to_json(body: dict[str, object]) -> bytes:
    """The value of one of our own records."""
    return _ENCODE(body).encode()


def parse_object(value: bytes) -> dict[str, object] | Poison:
    """`value` as a JSON object in UTF-8 (RFC 8259: no NaN, no Infinity)."""
    try:
        body = json.loads(value.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        return Poison(PoisonClass.NOT_JSON, "the value is nested too deeply")
    except UnicodeDecodeError as error:
        return Poison(PoisonClass.NOT_JSON, f"the value is not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return Poison(PoisonClass.NOT_JSON, f"the value is not JSON at character {error.pos}: {error.msg}")
    except ValueError:  # an integer of more digits than Python converts, or NaN
        return Poison(PoisonClass.NOT_JSON, "the value holds a number that cannot be read")
    if not isinstance(body, dict):
        return Poison(PoisonClass.UNKNOWN_SHAPE, "the value is not a JSON object")
    return body


def parse_claim(body: dict[str, object]) -> tuple[UUID, int] | Poison:
    """`taskId` and `version` of one of our own records."""
    task_id, version = _uuid(body.get("taskId")), body.get("version")
    if task_id is None:
        return Poison(PoisonClass.UNKNOWN_SHAPE, "there is neither a payload nor a taskId that is a UUID")
    if type(version) is not int or not 0 <= version <= _MAX_VERSION:
        return Poison(PoisonClass.UNKNOWN_SHAPE, "there is neither a payload nor a version that counts from 0")
    return task_id, version


def trace_headers(traceparent: str | None) -> Headers:
    """The header that carries W3C trace context, or none."""
    return ((TRACEPARENT, traceparent.encode("ascii", "replace")),) if traceparent else ()


def trace_of(headers: Headers) -> str | None:
    """The last well-formed `traceparent` (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    for name, value in reversed(headers):
        if name == TRACEPARENT and value is not None and _TRACEPARENT.fullmatch(value):
            return value.decode("ascii")
    return None


def _ours(record: Record, body: dict[str, object], task_type: str) -> Envelope | Poison:
    claim = parse_claim(body)
    if isinstance(claim, Poison):
        return claim
    return Envelope(claim[0], task_type, claim[1], trace_of(record.headers), body.get("probe") is True)


def _foreign(record: Record, body: dict[str, object], task_type: str) -> Foreign | Poison:
    task_id = body.get("taskId")
    if type(task_id) is int:
        task_id = str(task_id)
    if task_id is not None and not (
        isinstance(task_id, str) and task_id.isprintable() and 0 < len(task_id) <= _MAX_FOREIGN_ID
    ):
        return Poison(PoisonClass.UNKNOWN_SHAPE, f"taskId is not a text of 1 to {_MAX_FOREIGN_ID} printable characters")
    return Foreign(task_id, task_type, body["payload"], record, trace_of(record.headers))


def _uuid(text: object) -> UUID | None:
    if not isinstance(text, str) or len(text) != 36:
        return None
    try:
        return UUID(text)
    except ValueError:
        return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
