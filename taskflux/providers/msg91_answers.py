"""What an answer of MSG91's Flow API means. Pure.

The API says much with HTTP 200, so the body counts first. Codes and shapes: https://docs.msg91.com/, and what other
people's clients have met in the field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, TaskError, Transient, Unavailable

MISCONFIGURED_CODES: Final = frozenset(
    {"106", "207", "201", "401", "403"}  # the auth key
    | {"208", "418"}  # our address is not allowed
    | {"203", "211"}  # sender id, template
    | {"301", "302", "303"}  # balance, account
)
PERMANENT_CODES: Final = frozenset({"101", "202", "310"})
"""Mobile number missing or wrong, text too long."""

SAME_REQUEST: Final = "311"

_MONEY: Final = re.compile(r"balance|insufficient|credit", re.IGNORECASE)
_APPROVAL: Final = re.compile(r"not\s+(?:yet\s+)?approved|unapproved|pending", re.IGNORECASE)
_LONGEST_TEXT: Final = 300


def classify(
    status: int, body: bytes, *, retry_after: str | None = None, now: datetime | None = None
) -> str | TaskError:
    """The request id of an accepted message, or the error that the answer means.

    Args:
        status: the HTTP status.
        body: the body as it came.
        retry_after: the header of that name.
        now: for a `retry_after` that is a date; the present by default.
    """
    answer = _parsed(body)
    if answer is None:
        return _without_words(status, retry_after, now)
    if status < 300 and str(answer.get("type", "")).lower() == "success":
        return _text(answer.get("message"))
    if not _is_error(answer):
        return _without_words(status, retry_after, now)
    return _named(answer, status) or _by_status(status, retry_after, now) or _unknown(answer)


def _named(answer: Mapping[str, Any], status: int) -> TaskError | None:
    """The error of an answer whose code or words are known."""
    said = _said(answer)
    # The 401 shape carries the HTTP status in `code` and what is meant in `apiError`.
    code = str(answer.get("apiError") or answer.get("code") or "")
    if code in PERMANENT_CODES:
        return Permanent(said)
    if code in MISCONFIGURED_CODES or status in (401, 403):
        return Misconfigured(said)
    if code == SAME_REQUEST:
        # Not "try again in ten seconds": what MSG91 saw before may well have been this very task's attempt, taken
        # while its answer was lost. Sending again would then send twice; holding is answered by the delivery report.
        return Ambiguous(f"{said} (the same request came less than ten seconds ago and may have been taken)")
    if _MONEY.search(said) or _APPROVAL.search(said):
        return Misconfigured(said)
    return None


def _without_words(status: int, retry_after: str | None, now: datetime | None) -> TaskError:
    """The error of an answer that is not in MSG91's shape, from a proxy on the way or a wrong address."""
    if 200 <= status < 300:
        return Ambiguous(f"the SMS service answered HTTP {status} without saying whether it took the message")
    known = _by_status(status, retry_after, now)
    if known is not None:
        return known
    if status in (400, 413, 422):
        return Permanent(f"the SMS service refused the message with HTTP {status}")
    return Misconfigured(f"the SMS service answered HTTP {status}: see base_url and auth_key")


def _by_status(status: int, retry_after: str | None, now: datetime | None) -> TaskError | None:
    """The error of a status that says more than the words beside it."""
    said = f"the SMS service answered HTTP {status}"
    if status == 504:
        return Ambiguous(f"{said}: the message was passed on, and what became of it is not known")
    if status in (502, 503):
        return Unavailable(said)
    if status in (408, 429) or status >= 500:
        return Transient(said, retry_after=_seconds(retry_after, now))
    return None


def _unknown(answer: Mapping[str, Any]) -> TaskError:
    return Permanent(_said(answer))  # to send again without knowing why it failed spends money


def _parsed(body: bytes) -> Mapping[str, Any] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _is_error(answer: Mapping[str, Any]) -> bool:
    kind = str(answer.get("type") or answer.get("status") or "").lower()
    return kind in ("error", "fail", "failed", "failure") or bool(answer.get("hasError"))


def _said(answer: Mapping[str, Any]) -> str:
    text = _text(answer.get("message") or answer.get("errors") or "no reason")
    code = answer.get("apiError") or answer.get("code")
    return f"the SMS service said: {text}" + (f" ({_text(code)})" if code else "")


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line[:_LONGEST_TEXT]


def _seconds(retry_after: str | None, now: datetime | None) -> float | None:
    """RFC 9110, 10.2.3: seconds, or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
