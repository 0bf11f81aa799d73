"""A task as the API shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from taskflux.http.answers import rfc3339
from taskflux.tasks.timeline import parse_timeline


def task_document(row: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a task's row (columns of the query `get_task`)."""
    whole = {"payload": stored_json(row["payload"]), "timeline": timeline(row)}
    return task_summary(row) | whole


def timeline(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The timeline of a row, each entry with the trace that it stands in."""
    entries: list[dict[str, Any]] = [*map(dict, parse_timeline(row["timeline"] or ()))]
    trace = trace_id(row["traceparent"])
    return [entry | {"traceId": trace} for entry in entries] if trace else entries


def trace_id(traceparent: str | None) -> str | None:
    """The trace id in a traceparent."""
    return traceparent[3:35] if traceparent else None


def task_summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same without payload and timeline, as lists show it (columns of the queries `list_…`)."""
    document = {
        "taskId": str(row["id"]),
        "taskType": row["type"],
        "status": row["state"],
        "attempts": row["attempts"],
        "maxAttempts": row["max_attempts"],
        "retryCount": max(row["attempts"] - 1, 0),
        "createdAt": rfc3339(row["created_at"]),
        "updatedAt": rfc3339(row["updated_at"]),
        "dueAt": rfc3339(row["due_at"]),
        "result": stored_json(row["result"]),
        "error": _error(row),
    }
    return document | {name: value for name, value in _only_when_set(row).items() if value is not None}


def _error(row: Mapping[str, Any]) -> dict[str, str | None] | None:
    if row["error_class"] is None:
        return None
    return {"class": row["error_class"], "reason": row["error_reason"]}


def _only_when_set(row: Mapping[str, Any]) -> dict[str, Any]:
    expires_at: datetime | None = row["expires_at"]
    return {
        "key": row["key"],
        "metadata": stored_json(row["metadata"]),
        "expiresAt": rfc3339(expires_at) if expires_at else None,
        "replays": row["replays"] or None,
        "delivery": _delivery(row),
        "traceId": trace_id(row["traceparent"]),
    }


def _delivery(row: Mapping[str, Any]) -> Any:
    """What the provider has reported of this replay's message, if anything. It is no outcome of the task."""
    delivery = stored_json(row.get("delivery"))
    if not isinstance(delivery, dict) or delivery.pop("replay", 0) != row["replays"]:
        return None
    return delivery


def stored_json(text: str | None) -> Any:
    """What a stored JSON text says. A foreign record may hold what is nearly JSON: it is shown, not refused."""
    if text is None:
        return None
    try:
        return json.loads(text, parse_float=_float, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def _float(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits
