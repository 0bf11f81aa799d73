"""Dead letters that stand in memory, behind the application's routes."""

from __future__ import annotations

import json
from typing import Any

from uuid_utils.compat import uuid7

from tests.unit.http.stores import AT, CAUSE, NOW, Row


def letter(**changes: Any) -> Row:
    """The row of a dead task's dead letter."""
    return {
        "id": uuid7(),
        "tenant": "default",
        "task_id": uuid7(),
        "task_version": 2,
        "type": "email",
        "error_class": "Permanent",
        "cause": CAUSE,
        "reason": "550 no such user",
        "attempts": 1,
        "payload": '{"to": "ada@example.org", "subject": "hi"}',
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "origin": json.dumps({"topic": "tasks.dlq", "partition": 0, "offset": 7, "timestamp": 1893456000000}),
        "record_key": None,
        "record_value": None,
        "record_headers": None,
        "created_at": NOW,
        "state": "open",
        "discarded_at": None,
        "discard_reason": None,
        "task_state": "dead",
        "timeline": [f"{AT}|accepted|scheduled|0|1|"],
        "replays": None,
    } | changes


def poison(**changes: Any) -> Row:
    """The row of a dead letter of a record that was no task."""
    origin = {"topic": "shop-tasks.email", "partition": 1, "offset": 5, "timestamp": -1}
    nothing = dict.fromkeys(("task_id", "task_version", "type", "payload", "traceparent", "task_state", "timeline"))
    told: Row = {"error_class": "NotJson", "origin": json.dumps(origin), "record_value": b"{", "attempts": 0}
    return letter(**(nothing | told | changes))
