"""Why a task waits, in sentences."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskflux.http.tasks import reasons

NOW = datetime(2030, 1, 31, 14, 0, tzinfo=UTC)
FACTS: dict[str, Any] = {
    "off_handler": None, "provider": "smtp", "open": False, "opened_at": None, "error_class": None, "reason": None,
    "workers": 2, "seen": 1.0, "leaderless": -5.0, "suspect": False, "ahead": 0, "looked": 0,
    "ended": 0.0,
}  # fmt: skip
TASK: dict[str, Any] = {
    "type": "email", "state": "queued", "due_at": NOW, "error_class": None, "attempts": 0, "max_attempts": 8,
}  # fmt: skip


def told(task: dict[str, Any], **facts: Any) -> list[tuple[str, str]]:
    return [(each["kind"], each["text"]) for each in reasons(TASK | task, FACTS | facts, NOW)]


LATER = NOW + timedelta(minutes=5)
OPEN = {"open": True, "opened_at": NOW - timedelta(minutes=2), "error_class": "Misconfigured", "reason": "535 denied"}


@pytest.mark.parametrize(
    ("task", "facts", "expected"),
    [
        ({"state": "scheduled", "due_at": LATER}, {}, ("time", "it is scheduled for 2030-01-31 14:05:00Z")),
        (
            {"state": "scheduled", "due_at": LATER, "error_class": "Transient", "attempts": 2},
            OPEN,
            ("retry", "attempt 2 of 8 failed (Transient), and the next one is due at 2030-01-31 14:05:00Z"),
        ),
        ({}, OPEN, ("circuit", "the circuit of smtp is open since 2030-01-31 13:58:00Z (Misconfigured: 535 denied)")),
        ({}, {"off_handler": "process-email"}, ("off", "its handler process-email is switched off")),
        (
            {},
            {"workers": 0, "seen": 180.0},
            ("no-worker", "no worker of the type email has been seen for 3 minutes (is KEDA ready?)"),
        ),
        ({}, {"seen": None}, ("no-worker", "no worker of the type email has been seen ever (is KEDA ready?)")),
        ({"state": "scheduled"}, {"leaderless": 4.0}, ("no-relay", "no relay is running, which publishes it")),
        ({}, {"ahead": 12_000, "ended": 50.0}, ("behind", "12,000 others of its type are before it (about 4 minutes)")),
        ({}, {"ahead": 7}, ("behind", "7 others of its type are before it")),
        (
            {},
            {"ahead": 100_000, "looked": 100_000, "ended": 10.0},
            ("behind", "at least 100,000 others of its type are before it (at least 3 hours)"),
        ),
        (
            {},
            {"ahead": 5, "looked": 100_000},
            ("behind", "at least 5 others of its type are before it"),
        ),
        ({}, {}, ("next", "a worker takes it next")),
        ({"state": "scheduled"}, {}, ("next", "the relay publishes it next")),
        ({"state": "running", "attempts": 1}, OPEN, ("running", "it does not wait: attempt 1 of 8 runs")),
        (
            {"state": "uncertain"},
            {},
            ("decision", "its side effect may have happened: a delivery report or a person decides"),
        ),
        ({"state": "succeeded"}, OPEN, ("ended", "it does not wait: it is succeeded")),
    ],
)
def test_the_most_telling_reason_comes_first(
    task: dict[str, Any], facts: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert told(task, **facts)[0] == expected


def test_every_reason_is_told() -> None:
    found = told({"state": "scheduled"}, **OPEN, suspect=True, workers=0, ahead=3, leaderless=None)
    assert [kind for kind, _ in found] == ["circuit", "suspect", "no-worker", "no-relay", "behind"]
