"""A task as its reader sees it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from taskflux.http.bodies import to_json
from taskflux.http.tasks import task_document
from taskflux.tasks.timeline import parse_entry, parse_timeline
from tests.unit.http.stores import NOW

ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def row(**columns: Any) -> dict[str, Any]:
    plain = {
        "id": ID, "tenant": "default", "type": "email", "state": "scheduled", "version": 1, "attempts": 0,
        "max_attempts": 8, "replays": 0, "key": None, "payload": '{"to":"a"}', "metadata": None, "traceparent": None,
        "created_at": NOW, "updated_at": NOW, "due_at": NOW, "expires_at": None, "result": None, "error_class": None,
        "error_reason": None, "timeline": ["2030-01-01T00:00:00.000000Z|accepted|scheduled|0|1|"],
    }  # fmt: skip
    return plain | columns


def test_a_fresh_task_shows_what_every_task_has() -> None:
    assert task_document(row()) == {
        "taskId": str(ID),
        "taskType": "email",
        "status": "scheduled",
        "payload": {"to": "a"},
        "attempts": 0,
        "maxAttempts": 8,
        "retryCount": 0,
        "createdAt": "2030-01-01T00:00:00.000000Z",
        "updatedAt": "2030-01-01T00:00:00.000000Z",
        "dueAt": "2030-01-01T00:00:00.000000Z",
        "result": None,
        "error": None,
        "timeline": [
            {"at": "2030-01-01T00:00:00.000000Z", "event": "accepted", "state": "scheduled", "attempt": 0},
        ],
    }


def test_what_only_some_tasks_have_is_shown_when_it_is_there() -> None:
    east = timezone(timedelta(hours=2))
    document = task_document(
        row(
            attempts=3,
            replays=1,
            key="k",
            metadata='{"order":1}',
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            expires_at=datetime(2030, 1, 1, 2, tzinfo=east),
            result='{"messageId":"x"}',
            error_class="Transient",
            error_reason="451 try later",
        )
    )
    assert document["retryCount"] == 2
    assert document["error"] == {"class": "Transient", "reason": "451 try later"}
    assert document["result"] == {"messageId": "x"}
    assert document["replays"] == 1
    assert document["key"] == "k"
    assert document["metadata"] == {"order": 1}
    assert document["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert document["expiresAt"] == "2030-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    "payload", ["NaN", '{"x": 1e999, "y": -Infinity}', "not json", "[" * 5000, '"\\ud800\\u0000"', "9" * 5000]
)
def test_any_stored_text_can_be_shown(payload: str) -> None:
    json.loads(to_json(task_document(row(payload=payload))), parse_constant=pytest.fail)


def test_repeats_and_notes_of_a_timeline_are_shown_where_there_are_any() -> None:
    assert parse_timeline(["t|retry|scheduled|3|12|Transient: 451 later", "t|claimed|running|4|1|w-1"]) == [
        {"at": "t", "event": "retry", "state": "scheduled", "attempt": 3, "times": 12, "note": "Transient: 451 later"},
        {"at": "t", "event": "claimed", "state": "running", "attempt": 4, "note": "w-1"},
    ]


@pytest.mark.parametrize("text", ["", "a|b", "t|retry|scheduled|x|1|"])
def test_a_text_that_is_no_timeline_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_entry(text)
