"""From a request to a submission: pure, and the one place that says what a task may look like.

Names that stand twice in a JSON object are taken as most parsers do: the last one counts. What is validated is what
is stored and what the handler gets, so nobody sees the other one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from starlette.types import Receive, Scope, Send
from uuid_utils.compat import uuid7

from taskflux.http.answers import answer, rfc3339
from taskflux.http.bodies import JSON_TYPES, Headers, headers_of, media_type, parse_json, read_body
from taskflux.http.problems import (
    INVALID_TASK,
    KEY_REUSED,
    UNKNOWN_TASK_TYPE,
    FieldError,
    Problem,
    not_valid,
    shortened,
    store_problem,
)
from taskflux.http.registry import Registered, TypeRegistry
from taskflux.http.services import Services
from taskflux.store.errors import StoreError
from taskflux.tasks.states import State
from taskflux.tasks.submission import DEFAULT_TENANT, Accepted, IdempotencyKey, KeyReused, Submission
from taskflux.telemetry import metrics
from taskflux.telemetry.logs import TASK

LONGEST_DELAY: Final = timedelta(days=3653)
LONGEST_KEY: Final = 200
LONGEST_IDEMPOTENCY_KEY: Final = 255
LARGEST_METADATA: Final = 16 * 1024
MOST_ATTEMPTS: Final = 1000

PLAIN_TYPE: Final = "simulated"
"""The type of a task that gives none and whose payload is a text, FluxTask's only shape."""

_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?P<offset>[Zz]|[+-][0-9]{2}:[0-9]{2})?"
)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What belongs to a submission and does not stand in its body."""

    traceparent: str
    now: datetime
    idempotency_key: str | None = None
    tenant: str = DEFAULT_TENANT


_encode: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_canonical: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, sort_keys=True).encode


def task_type_of(document: object) -> str:
    """The task type that a document asks for.

    Raises:
        Problem: 422, it asks for none.
    """
    if not isinstance(document, dict):
        raise Problem(
            INVALID_TASK, 'a task is a JSON object, for example {"taskType": "simulated", "payload": "hello"}'
        )
    name = document.get("taskType")
    if isinstance(name, str):
        return name
    if name is not None:
        raise not_valid(INVALID_TASK, [FieldError("taskType", "must be a text")])
    if isinstance(document.get("payload"), str):
        return PLAIN_TYPE
    raise not_valid(INVALID_TASK, [*_unknown_fields(document), FieldError("taskType", "is required")])


def unknown_type(name: str, known: Sequence[str]) -> Problem:
    """The problem of a type that nobody has registered."""
    said = shortened(name, 100)
    near = difflib.get_close_matches(said, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    registered = ", ".join(known[:50]) or "none yet"
    detail = (
        f"{hint}no worker has registered {said!r}; registered are: {registered}. A type is registered when a worker"
        " of it first starts, or by `taskflux topics`"
    )
    errors = [FieldError("taskType", "is not registered")]
    return Problem(UNKNOWN_TASK_TYPE, detail, errors, extra={"knownTypes": list(known[:50])})


def read_submission(document: dict[str, Any], registered: Registered, circumstances: Circumstances) -> Submission:
    """The submission of a document whose type is `registered`.

    Raises:
        Problem: 422, with every bad field.
    """
    given: dict[str, Any] = {}
    errors: list[FieldError] = []
    if len(document) != 2 or "taskType" not in document or "payload" not in document:
        given, errors = _read_fields(document, circumstances)
    payload = document.get("payload")
    text = ""
    try:
        text = _encode(payload)
        errors += registered.schema.errors(payload) if "payload" in document else []
    except RecursionError:
        errors.append(FieldError("payload", "is nested too deeply"))
    except ValueError:
        errors.append(FieldError("payload", "holds a number beyond the range of a double"))
    key = circumstances.idempotency_key
    if key is not None and not is_idempotency_key(key):
        errors.append(
            FieldError("Idempotency-Key", f"must be 1 to {LONGEST_IDEMPOTENCY_KEY} printable ASCII characters")
        )
    if errors:
        raise not_valid(INVALID_TASK, errors)
    task_type = registered.type
    metadata = given.get("metadata")
    return Submission(
        id=uuid7(),
        type=task_type.name,
        payload=text,
        max_attempts=given.get("maxAttempts", task_type.max_attempts),
        tenant=circumstances.tenant,
        key=given.get("key"),
        schedule_at=given.get("scheduleAt"),
        delay=given.get("delaySeconds", 0.0),
        expires_at=given.get("expiresAt"),
        metadata=None if metadata is None else _encode(metadata),
        traceparent=circumstances.traceparent,
        idempotency=None if key is None else IdempotencyKey(key, digest(task_type.name, payload, given)),
        provider=task_type.provider,
    )


def digest(task_type: str, payload: object, given: dict[str, Any]) -> bytes:
    """SHA-256 of what a request means: the order of its names, spaces and time zones make no difference."""
    fields = {name: rfc3339(value) if isinstance(value, datetime) else value for name, value in given.items()}
    return hashlib.sha256(_canonical({"taskType": task_type, "payload": payload, **fields}).encode("ascii")).digest()


def is_idempotency_key(key: object) -> bool:
    """Whether `key` may name a request."""
    return isinstance(key, str) and 1 <= len(key) <= LONGEST_IDEMPOTENCY_KEY and key.isascii() and key.isprintable()


def _read_fields(document: dict[str, Any], circumstances: Circumstances) -> tuple[dict[str, Any], list[FieldError]]:
    """The optional fields that are given (null is as good as absent), and what is wrong with the document's fields."""
    errors = _unknown_fields(document)
    if "payload" not in document:
        errors.append(FieldError("payload", "is required"))
    given: dict[str, Any] = {}
    for name, read in _READERS.items():
        value = document.get(name)
        if value is None:
            continue
        try:
            given[name] = read(value)
        except (ValueError, OverflowError, RecursionError) as error:
            errors.append(FieldError(name, str(error) if type(error) is ValueError else "is out of range"))
    return given, errors + _check_times(given, circumstances)


def _unknown_fields(document: dict[str, Any]) -> list[FieldError]:
    errors = []
    for name in sorted(document.keys() - FIELDS)[:20]:
        near = difflib.get_close_matches(name[:50], FIELDS, 1)
        hint = _FOREIGN.get(name) or (f"did you mean {near[0]}?" if near else f"known are {', '.join(FIELDS)}")
        errors.append(FieldError(shortened(name, 100), f"is not a known field: {hint}"))
    return errors


def _check_times(given: dict[str, Any], circumstances: Circumstances) -> list[FieldError]:
    schedule_at, delay, expires_at = (given.get(name) for name in ("scheduleAt", "delaySeconds", "expiresAt"))
    errors = []
    if schedule_at is not None and delay is not None:
        errors.append(FieldError("delaySeconds", "contradicts scheduleAt: give one of the two"))
    if schedule_at is not None and schedule_at - circumstances.now > LONGEST_DELAY:
        errors.append(FieldError("scheduleAt", "is more than ten years ahead"))
    if expires_at is None:
        return errors
    if schedule_at is not None and expires_at <= schedule_at:
        errors.append(FieldError("expiresAt", "is not after scheduleAt: the task could never run"))
    # With an idempotency key this may be the repeat of a request that was in time, and must be answered like it.
    elif circumstances.idempotency_key is None and expires_at <= circumstances.now + timedelta(seconds=delay or 0):
        when = "before delaySeconds have passed" if delay else "in the past"
        errors.append(FieldError("expiresAt", f"is {when}: the task could never run"))
    return errors


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


def _delay(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_DELAY.total_seconds():
        raise ValueError(f"must be a number of seconds from 0 to {LONGEST_DELAY.total_seconds():.0f} (ten years)")
    return float(value)


def _key(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_KEY or not value.isprintable():
        raise ValueError(f"must be a text of 1 to {LONGEST_KEY} printable characters")
    return value


def _max_attempts(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_ATTEMPTS:
        raise ValueError(f"must be a whole number from 1 to {MOST_ATTEMPTS}")
    return value


def _metadata(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    try:
        size = len(_encode(value))
    except ValueError:
        raise ValueError("holds a number beyond the range of a double") from None
    if size > LARGEST_METADATA:
        raise ValueError(f"is larger than {LARGEST_METADATA:,} bytes of JSON")
    return value


_READERS: Final[dict[str, Callable[[object], Any]]] = {
    "scheduleAt": moment,
    "delaySeconds": _delay,
    "expiresAt": moment,
    "key": _key,
    "maxAttempts": _max_attempts,
    "metadata": _metadata,
}
FIELDS: Final = ("taskType", "payload", *_READERS)

_FOREIGN: Final = {
    "idempotencyKey": "send the header Idempotency-Key (only an item of a batch has this field)",
    "taskId": "TaskFlux gives the id; to send a request twice safely, use the header Idempotency-Key",
}


_SCHEDULED: Final = f'"{State.SCHEDULED}"'
REPLAY: Final = (b"idempotent-replay", b"true")


class SubmitTask:
    """Answers 202 once the task is in PostgreSQL.

    A repeat of an idempotency key is answered with the body of the first time, byte for byte: it holds nothing that
    changes later.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            headers = headers_of(scope)
            media_type(headers, JSON_TYPES)
            body = await read_body(headers, receive, self._services.limits.max_body_bytes)
            accepted = await self._accept(headers, body)
        except Problem as problem:
            metrics.SUBMITTED.labels(metrics.UNKNOWN, problem.kind.slug).inc()
            raise
        metrics.SUBMITTED.labels(accepted.type, "repeated" if accepted.repeated else "accepted").inc()
        location = (b"location", f"/tasks/{accepted.id}".encode("ascii"))
        extra = (location, REPLAY) if accepted.repeated else (location,)
        told = f"{{{accepted_members(accepted, _SCHEDULED)}}}"
        await answer(send, 202, told.encode("ascii"), headers=extra)

    async def _accept(self, headers: Headers, body: bytes) -> Accepted:
        services = self._services
        key = headers.get(b"idempotency-key")
        circumstances = Circumstances(
            services.traceparent(headers.get(b"traceparent")),
            services.now(),
            None if key is None else key.decode("latin-1"),
        )
        document = parse_json(body)
        try:
            registered = await registered_type(document, services.registry)
            submission = read_submission(document, registered, circumstances)
            TASK.set(submission.id)
            outcome = await services.intake.accept(submission)
        except StoreError as error:
            raise store_problem(error) from error
        if isinstance(outcome, KeyReused):
            raise key_reused("Idempotency-Key")
        TASK.set(outcome.id)
        return outcome


async def registered_type(document: Any, registry: TypeRegistry) -> Registered:
    """The type that a document asks for.

    Raises:
        Problem: 422, it asks for none, or for one that nobody has registered.
        StoreError: it is not known here, and the store cannot be asked.
    """
    name = task_type_of(document)
    registered = registry.get(name) or await registry.find(name)
    if registered is None:
        raise unknown_type(name, registry.names)
    return registered


def accepted_members(accepted: Accepted, status: str) -> str:
    """What the submitter is told, as members of a JSON object: written by hand, it takes a third of the time."""
    name = encode_basestring_ascii(accepted.type)
    created_at = rfc3339(accepted.created_at)
    return f'"taskId":"{accepted.id}","taskType":{name},"status":{status},"createdAt":"{created_at}"'


def key_reused(field: str) -> Problem:
    """The problem of an idempotency key that came with another request before."""
    detail = "this idempotency key came with another request before: use a new key for a new task"
    return Problem(KEY_REUSED, detail, [FieldError(field, "stands for another request")])
