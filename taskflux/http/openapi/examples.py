"""Examples that stand in the document; a test sends the requests among them."""

from __future__ import annotations

from typing import Any, Final

TASK_ID: Final = "01890a5d-ac96-774b-bcce-b302099a8057"
DEAD_LETTER_ID: Final = "01890a5e-13f2-7d10-8a44-5d6f3c1b2a90"
REPLAY_ID: Final = "01890a60-77aa-7c3e-9f51-0b1c2d3e4f50"
_AT: Final = "2030-01-31T09:00:00.000000Z"
_THEN: Final = "2030-01-31T09:00:00.250000Z"

EMAIL: Final = {
    "taskType": "email",
    "payload": {"to": "ann@example.org", "subject": "Welcome", "body": "Hello Ann"},
}
SMS: Final = {"taskType": "sms", "payload": {"mobile": "+919876543210", "name": "Ann"}}
LATER: Final = {
    "taskType": "simulated",
    "payload": {"delayMs": 200},
    "delaySeconds": 3600,
    "maxAttempts": 3,
    "metadata": {"order": "A-17"},
}
TEXT: Final = {"payload": "a simulated task"}

ACCEPTED: Final = {"taskId": TASK_ID, "taskType": "email", "status": "scheduled", "createdAt": _AT}
BATCH_RESULTS: Final = [
    {"index": 0, "taskId": TASK_ID, "taskType": "email", "status": 202, "createdAt": _AT},
    {
        "index": 1,
        "status": 422,
        "problem": {
            "type": "/problems/invalid-task",
            "title": "The task is not valid",
            "status": 422,
            "detail": "not valid: payload.name",
            "errors": [{"field": "payload.name", "message": "is required"}],
        },
    },
]

_SUMMARY: Final[dict[str, Any]] = {
    "taskId": TASK_ID,
    "taskType": "email",
    "status": "succeeded",
    "attempts": 1,
    "maxAttempts": 6,
    "retryCount": 0,
    "createdAt": _AT,
    "updatedAt": _THEN,
    "dueAt": _AT,
    "result": {"messageId": f"<{TASK_ID}@example.org>", "delivered": {"ann@example.org": "250 OK"}},
    "error": None,
    "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
}
TASK: Final = {
    **_SUMMARY,
    "payload": EMAIL["payload"],
    "timeline": [
        {"at": _AT, "event": "accepted", "state": "scheduled", "attempt": 0},
        {"at": _AT, "event": "published", "state": "queued", "attempt": 0},
        {"at": _AT, "event": "claimed", "state": "running", "attempt": 1, "note": "process-email@pod:1"},
        {"at": _THEN, "event": "succeeded", "state": "succeeded", "attempt": 1},
    ],
}
TASK_PAGE: Final = {"items": [_SUMMARY], "nextCursor": None}
CANCELLED: Final = {**TASK, "status": "cancelled", "attempts": 0, "result": None}

DEAD_LETTER: Final[dict[str, Any]] = {
    "deadLetterId": DEAD_LETTER_ID,
    "taskId": TASK_ID,
    "taskType": "email",
    "errorClass": "Permanent",
    "reason": "550 5.1.1 no such user",
    "attempts": 1,
    "origin": {"topic": "tasks.dlq", "partition": 3, "offset": 17, "timestamp": _AT},
    "createdAt": _THEN,
    "state": "open",
    "replays": [],
    "discarded": None,
}
DEAD_LETTER_IN_FULL: Final = {
    **DEAD_LETTER,
    "payload": EMAIL["payload"],
    "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
    "timeline": [{"at": _THEN, "event": "died", "state": "dead", "attempt": 1, "note": "Permanent"}],
    "record": None,
}
DISCARDED: Final = {**DEAD_LETTER_IN_FULL, "state": "discarded", "discarded": {"at": _THEN, "reason": "a test"}}
DEAD_LETTER_PAGE: Final = {"items": [DEAD_LETTER], "nextCursor": None}
_GROUPS: Final = [{"taskType": "email", "errorClass": "Permanent", "count": 12, "oldest": _AT, "newest": _THEN}]
GROUPS: Final = {"groups": _GROUPS}
DRY_RUN: Final = {"matched": 12, "groups": _GROUPS}
REPLAYED: Final = {"deadLetterId": DEAD_LETTER_ID, "taskId": TASK_ID, "status": "scheduled"}
BULK_STARTED: Final = {"replayId": REPLAY_ID, "matched": 12, "status": "running"}
BULK: Final = {
    **BULK_STARTED,
    "status": "finished",
    "filter": {"taskType": "email", "errorClass": "Permanent"},
    "rate": 50.0,
    "replayed": 11,
    "skipped": 1,
    "outcomes": {"succeeded": 10, "dead": 1},
    "createdAt": _AT,
    "updatedAt": _THEN,
}
