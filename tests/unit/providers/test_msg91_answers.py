import json
from datetime import UTC, datetime
from typing import Any

import pytest

from taskflux.providers.msg91 import classify
from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, TaskError, Transient, Unavailable


def meaning(status: int, answer: Any, **more: Any) -> str | TaskError:
    return classify(status, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), **more)


def error(message: str, code: str | None = None) -> dict[str, str]:
    return {"type": "error", "message": message} | ({"code": code} if code else {})


UNAUTHORIZED = {"status": "fail", "hasError": True, "errors": "Unauthorized", "code": "401"}


def test_success_is_the_request_id() -> None:
    assert meaning(200, {"type": "success", "message": "3763646c3058373530393938"}) == "3763646c3058373530393938"


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (200, error("Invalid mobile number", "202"), Permanent),
        (200, error("mobile missing", "101"), Permanent),
        (400, error("message too long", "310"), Permanent),
        (200, error("authkey invalid", "207"), Misconfigured),
        (200, error("authkey missing", "106"), Misconfigured),
        (401, UNAUTHORIZED | {"apiError": "201"}, Misconfigured),
        (401, UNAUTHORIZED | {"apiError": "418"}, Misconfigured),
        (401, UNAUTHORIZED, Misconfigured),
        (200, UNAUTHORIZED | {"apiError": "418"}, Misconfigured),
        (200, error("address not allowed", "208"), Misconfigured),
        (200, error("sender id invalid", "203"), Misconfigured),
        (200, error("template id missing", "211"), Misconfigured),
        (200, error("account expired", "302"), Misconfigured),
        (200, error("account blocked", "303"), Misconfigured),
        (200, error("no money", "301"), Misconfigured),
        (200, error("Insufficient balance"), Misconfigured),
        (200, error("You have no credit left"), Misconfigured),
        (200, error("Flow not approved"), Misconfigured),
        (200, error("template pending"), Misconfigured),
        (200, error("same request", "311"), Ambiguous),
        (200, error("something new"), Permanent),
        (400, error("something new", "999"), Permanent),
        (500, error("something broke"), Transient),
        (500, b"<html>", Transient),
        (429, error("slow down"), Transient),
        (429, b"", Transient),
        (502, b"<html>", Unavailable),
        (503, b"", Unavailable),
        (504, b"<html>", Ambiguous),
        (200, b"<html>thanks</html>", Ambiguous),
        (200, b"", Ambiguous),
        (200, b"\xff\xfe", Ambiguous),
        (200, b"[]", Ambiguous),
        (200, b'{"ok": true}', Ambiguous),
        (200, b"[" * 100_000, Ambiguous),
        (404, b"<html>", Misconfigured),
        (302, b"", Misconfigured),
        (403, b"forbidden", Misconfigured),
        (422, b"no", Permanent),
    ],
)
def test_every_answer_has_its_meaning(status: int, answer: Any, expected: type[TaskError]) -> None:
    assert type(meaning(status, answer)) is expected


def test_the_reason_says_what_the_service_said() -> None:
    outcome = meaning(200, error("Invalid\nmobile", "202"))
    assert isinstance(outcome, TaskError)
    assert outcome.reason == "the SMS service said: Invalid mobile (202)"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("17", 17.0),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        (None, None),
    ],
)
def test_retry_after_is_honoured_as_seconds_and_as_a_date(header: str | None, seconds: float | None) -> None:
    outcome = meaning(429, b"", retry_after=header, now=datetime(2026, 3, 1, 12, tzinfo=UTC))
    assert isinstance(outcome, Transient)
    assert outcome.retry_after == seconds
