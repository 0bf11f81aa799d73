"""A dead letter as the API shows it, and what it is sent again as.

Bytes that nobody vouches for are shown so that they can do no harm.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from taskflux.http.bodies import beside_loop, parse_json
from taskflux.http.client import Client
from taskflux.http.problems import EMPTY_FILTER, INVALID_REPLAY, FieldError, Problem, not_valid, unknown_fields
from taskflux.http.queries import LETTER_FILTERS, read_fields
from taskflux.http.submissions import Submissions
from taskflux.http.tasks import parse_timeline, stored_json
from taskflux.store.dead_letters import LetterFilter
from taskflux.stream.envelope import Envelope, Poison, Record, decode
from taskflux.stream.topics import type_of_topic
from taskflux.tasks.bounds import LARGE
from taskflux.tasks.fields import moment, rfc3339
from taskflux.tasks.model import Submission
from taskflux.tasks.states import State
from taskflux.telemetry.tracing import trace_id

_UNDER_WAY: Final = frozenset({State.SCHEDULED, State.QUEUED, State.RUNNING})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SPACES: Final = dict.fromkeys(map(ord, "\t\n\r\u00a0\u1680\u202f\u205f\u3000"))
"""White space that Python does not call printable."""


def letter_item(row: Mapping[str, Any]) -> dict[str, Any]:
    """A letter in a list (columns of the query `page_of_dead_letters`)."""
    return {
        "deadLetterId": str(row["id"]),
        "taskId": None if row["task_id"] is None else str(row["task_id"]),
        "taskType": row["type"],
        "errorClass": row["error_class"],
        "reason": row["reason"],
        "attempts": row["attempts"],
        "origin": _origin(row["origin"]),
        "createdAt": rfc3339(row["created_at"]),
        "state": row["state"],
        "replays": [_replay(*entry) for entry in row["replays"] or ()],
        "discarded": _discarded(row),
    }


def letter_document(row: Mapping[str, Any]) -> dict[str, Any]:
    """A letter with everything about it (columns of the query `get_dead_letter`)."""
    trace = trace_id(row["traceparent"]) or None
    return letter_item(row) | {
        "payload": stored_json(row["payload"]),
        "traceId": trace,
        "timeline": parse_timeline(row["timeline"] or (), trace),
        "record": None if row["task_id"] else _record(row),
    }


def groups_document(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups of letters (columns of the query `groups_of_dead_letters`)."""
    return [
        {
            "taskType": row["type"],
            "errorClass": row["error_class"],
            "count": row["letters"],
            "oldest": rfc3339(row["oldest"]),
            "newest": rfc3339(row["newest"]),
        }
        for row in rows
    ]


def bulk_document(row: Mapping[str, Any], outcomes: Mapping[str, int]) -> dict[str, Any]:
    """A bulk replay (columns of the query `get_bulk_replay`) and what has become of its tasks so far."""
    return {
        "replayId": str(row["id"]),
        "status": row["status"],
        "filter": json.loads(row["filter"]),
        "rate": row["rate"],
        "matched": row["matched"],
        "replayed": row["replayed"],
        "skipped": row["skipped"],
        "outcomes": dict(sorted(outcomes.items())),
        "createdAt": rfc3339(row["created_at"]),
        "updatedAt": rfc3339(row["updated_at"]),
    }


def shown_bytes(raw: bytes | None) -> dict[str, str] | None:
    """Text where it is text that a person can read, else base64."""
    if raw is None:
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    # Control and direction characters make a terminal or a page show something else than is there.
    if text.translate(_SPACES).isprintable():
        return {"encoding": "utf-8", "data": text}
    return {"encoding": "base64", "data": base64.b64encode(raw).decode("ascii")}


def _origin(text: str) -> dict[str, Any]:
    origin = json.loads(text)
    return {
        "topic": origin.get("topic"),
        "partition": origin.get("partition"),
        "offset": origin.get("offset"),
        "timestamp": _moment(origin.get("timestamp")),
    }


def _moment(milliseconds: object) -> str | None:
    """When a producer says that it wrote the record; none where that is no time."""
    if not isinstance(milliseconds, int) or milliseconds < 0:
        return None
    try:
        return rfc3339(_EPOCH + timedelta(milliseconds=milliseconds))
    except OverflowError:
        return None


def _replay(at: str, task: str, outcome: str, bulk: str | None) -> dict[str, Any]:
    told = {"at": at, "taskId": task, "outcome": None if outcome in _UNDER_WAY else outcome}
    return told if bulk is None else told | {"by": bulk}


def _discarded(row: Mapping[str, Any]) -> dict[str, str] | None:
    if row["discarded_at"] is None:
        return None
    return {"at": rfc3339(row["discarded_at"]), "reason": row["discard_reason"]}


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": shown_bytes(row["record_key"]),
        "value": shown_bytes(row["record_value"]),
        "headers": [
            {"name": name, "value": shown_bytes(_decoded(value))}
            for name, value in json.loads(row["record_headers"] or "[]")
        ],
    }


def _decoded(text: str | None) -> bytes | None:
    try:
        return None if text is None else base64.b64decode(text)
    except binascii.Error:
        return text.encode("utf-8", "replace") if text else None


FIELDS: Final = ("payload", "taskType", "value")


@dataclass(frozen=True, slots=True)
class Repair:
    """What a person gives in place of what the letter holds.

    Args:
        payload: a list of one payload, or of none: JSON's null is a payload too.
        task_type: of a record's payload.
        value: a record's whole value, as text.
    """

    payload: tuple[Any, ...] = ()
    task_type: str | None = None
    value: str | None = None

    @property
    def edited(self) -> bool:
        """Whether anything else is sent than what died."""
        return bool(self.payload) or self.value is not None


def read_repair(document: Mapping[str, Any]) -> Repair:
    """The repair that a body asks for; an empty object asks for none.

    Raises:
        Problem: 422, naming each field that cannot be taken.
    """
    errors = unknown_fields(document, FIELDS)
    task_type, value = document.get("taskType"), document.get("value")
    if task_type is not None and not isinstance(task_type, str):
        errors.append(FieldError("taskType", "must be a text"))
    if value is not None and not isinstance(value, str):
        errors.append(FieldError("value", "must be a text, the record's value as UTF-8"))
    if value is not None and ("payload" in document or task_type is not None):
        errors.append(FieldError("value", "is the whole record: give it, or payload and taskType"))
    if errors:
        raise not_valid(INVALID_REPLAY, errors)
    return Repair((document["payload"],) if "payload" in document else (), task_type, value)


async def edited_payload(
    letter: Mapping[str, Any], repair: Repair, submissions: Submissions, client: Client, size: int
) -> str | None:
    """The JSON text that replaces the payload of a dead letter's task; None keeps it. `size` is the repair's, in bytes.

    Raises:
        Problem: 422, it is not what the type takes, or the fields are those of a broken record; 503, the type is not
            known here, and the store cannot be asked.
    """
    wrong = [name for name, given in (("taskType", repair.task_type), ("value", repair.value)) if given is not None]
    if wrong:
        said = "mends a record that was no task; this one was"
        raise not_valid(INVALID_REPLAY, [FieldError(name, said) for name in wrong])
    if not repair.payload:
        return None
    document = {"taskType": letter["type"], "payload": repair.payload[0]}
    return (await submissions.read(document, client, size=size)).payload


async def new_task(
    letter: Mapping[str, Any], repair: Repair, submissions: Submissions, client: Client, size: int, prefix: str
) -> Submission:
    """The task that a letter without one becomes: a repaired record, or a task that was pruned.

    The dead letter's own trace continues; without one, the request's does. `size` is the repair's, in bytes.

    Raises:
        Problem: 422, something is still missing or wrong; 503, the type is not known here, and the store cannot be
            asked.
    """
    size, trace = size + len(letter["payload"] or ""), letter["traceparent"]
    given = letter, repair, prefix
    document = _document(*given) if size < LARGE else await beside_loop(_document, *given)
    return await submissions.read(document, client, size=size, traceparent=trace)


def _document(letter: Mapping[str, Any], repair: Repair, prefix: str) -> dict[str, Any]:
    if repair.value is not None:
        return _of_value(repair.value, json.loads(letter["origin"]))
    task_type = repair.task_type or letter["type"] or _type_of_origin(letter, prefix)
    if task_type is None:
        raise not_valid(INVALID_REPLAY, [FieldError("taskType", "is required: the record's topic does not tell it")])
    if repair.payload:
        return {"taskType": task_type, "payload": repair.payload[0]}
    if letter["payload"] is None:
        raise not_valid(INVALID_REPLAY, [FieldError("payload", "is required: what is there is no task; or give value")])
    return {"taskType": task_type, "payload": parse_json(letter["payload"].encode("utf-8"))}


def _type_of_origin(letter: Mapping[str, Any], prefix: str) -> str | None:
    return type_of_topic(prefix, str(json.loads(letter["origin"]).get("topic")))


def _of_value(value: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The task that a record of this value asks for, read as whoever takes records reads it."""
    raw = value.encode("utf-8")
    found = decode(Record(str(origin.get("topic")), 0, 0, 0, None, raw), max_bytes=len(raw) + 1)
    match found:
        case Poison():
            raise not_valid(INVALID_REPLAY, [FieldError("value", f"is still no task: {found.reason}")])
        case Envelope():
            raise not_valid(
                INVALID_REPLAY, [FieldError("value", "names a task and brings no payload: a task needs one")]
            )
        case _:
            return {"taskType": found.task_type, "payload": json.loads(found.payload), **found.fields}


USUAL_RATE: Final = 50.0
LEAST_RATE, MOST_RATE = 0.01, 5_000.0


def read_bulk(document: Mapping[str, Any]) -> tuple[LetterFilter, float, bool]:
    """The bulk replay that a body asks for: which letters, how many a second, and whether they are only counted.

    Raises:
        Problem: 422, naming each field that cannot be taken; or the filter is empty.
    """
    errors: list[FieldError] = []
    values = read_fields(document, {"filter": _object, "dryRun": _boolean, "rate": _rate}, errors)
    readers = LETTER_FILTERS | {"createdAfter": moment, "createdBefore": moment}
    found = read_fields(values.get("filter", {}), readers, errors, "filter.")
    if errors:
        raise not_valid(INVALID_REPLAY, errors)
    wanted = LetterFilter(*map(found.get, LETTER_FILTERS))
    if wanted.empty:
        known = ", ".join(LETTER_FILTERS)
        detail = f"say which dead letters: the filter names at least one of {known}; to mean all, createdBefore now"
        raise Problem(EMPTY_FILTER, detail, [FieldError("filter", "is empty")])
    return wanted, values.get("rate", USUAL_RATE), values.get("dryRun", False)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_RATE <= value <= MOST_RATE:
        raise ValueError(f"must be a number of dead letters a second from {LEAST_RATE:g} to {MOST_RATE:g}")
    return float(value)
