"""A dead letter as the API shows it. Bytes that nobody vouches for are shown so that they can do no harm."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from taskflux.http.answers import rfc3339
from taskflux.http.views import stored_json, timeline, trace_id
from taskflux.tasks.states import State

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
    return letter_item(row) | {
        "payload": stored_json(row["payload"]),
        "traceId": trace_id(row["traceparent"]),
        "timeline": timeline(row),
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
