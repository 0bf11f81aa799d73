"""The fields of a submission: rules for the optional ones beside a payload, such as scheduleAt, the same for HTTP and
Kafka; and patterns for those of a payload, each with a sentence for its error, since an answer never quotes a pattern.

Pure: `now` is passed in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from json.encoder import encode_basestring_ascii
from typing import Any, Final

LONGEST_DELAY: Final = timedelta(days=3653)
LONGEST_KEY: Final = 200
LARGEST_METADATA: Final = 16 * 1024
MOST_ATTEMPTS: Final = 1000


def _compact() -> Callable[[object], str]:
    """`json.JSONEncoder.encode` with one encoder for all calls: creating it takes longer than writing a small text."""
    whole = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)
    create = getattr(json.encoder, "c_make_encoder", None)
    if create is None:
        return whole.encode
    write = create(None, whole.default, encode_basestring_ascii, None, ":", ",", False, False, False)
    return lambda document: "".join(write(document, 0))


compact: Final = _compact()
"""The text of a JSON document, compact and in ASCII. Raises ValueError for a number beyond the range of a double."""
_canonical: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, sort_keys=True).encode

Wrong = list[tuple[str, str]]
"""Invalid fields, and what is wrong with each."""


def read_fields(document: Mapping[str, Any], now: datetime, *, repeatable: bool) -> tuple[dict[str, Any], Wrong]:
    """The optional fields that are given (null counts as absent), and what is wrong with them.

    Args:
        now: this process's clock; used only to refuse times that make no sense.
        repeatable: it may be the repeat of a request that came in time, so it is accepted even after its `expiresAt`.
    """
    given: dict[str, Any] = {}
    wrong: Wrong = []
    for name, read in _READERS.items():
        value = document.get(name)
        if value is None:
            continue
        try:
            given[name] = read(value)
        except (ValueError, OverflowError) as error:
            wrong.append((name, str(error) if type(error) is ValueError else "is out of range"))
    return given, wrong + _check_times(given, now, repeatable=repeatable)


def digest(task_type: str, payload: object, given: dict[str, Any]) -> bytes:
    """SHA-256 of what a request means, independent of the order of its names, its spaces and its time zones."""
    fields = {name: rfc3339(value) if isinstance(value, datetime) else value for name, value in given.items()}
    return hashlib.sha256(_canonical({"taskType": task_type, "payload": payload, **fields}).encode("ascii")).digest()


def _check_times(given: Mapping[str, Any], now: datetime, *, repeatable: bool) -> Wrong:
    schedule_at, delay, expires_at = (given.get(name) for name in ("scheduleAt", "delaySeconds", "expiresAt"))
    wrong: Wrong = []
    if schedule_at is not None and delay is not None:
        wrong.append(("delaySeconds", "contradicts scheduleAt: give one of the two"))
    if schedule_at is not None and schedule_at - now > LONGEST_DELAY:
        wrong.append(("scheduleAt", "is more than ten years ahead"))
    if expires_at is None:
        return wrong
    if schedule_at is not None and expires_at <= schedule_at:
        wrong.append(("expiresAt", "is not after scheduleAt: the task could never run"))
    # With an idempotency key this may repeat a request that came in time, and must be answered like it.
    elif not repeatable and expires_at <= now + timedelta(seconds=delay or 0):
        when = "before delaySeconds have passed" if delay else "in the past"
        wrong.append(("expiresAt", f"is {when}: the task could never run"))
    return wrong


_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:(?P<second>[0-9]{2})(?:\.[0-9]+)?"
    r"(?P<offset>[Zz]|[+-][0-9]{2}:[0-9]{2})?"
)


def moment(value: object) -> datetime:
    """The time in a text, in UTC. A leap second is read as the second after it, as PostgreSQL does.

    Raises:
        ValueError: it is not an RFC 3339 time; the message is a sentence.
        OverflowError: it is outside the range of years that `datetime` supports.
    """
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be an RFC 3339 time, for example 2030-01-31T09:00:00Z")
    if match["offset"] is None:
        raise ValueError("has no offset from UTC: end it with Z or, for example, +02:00")
    text, leap = match[0].upper(), match["second"] == "60"
    if leap:
        text = f"{text[: match.start('second')]}59{text[match.end('second') :]}"
    try:
        found = datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as error:
        raise ValueError(f"does not exist: {error}") from None
    if not leap:
        return found
    if (found.hour, found.minute) != (23, 59):
        raise ValueError("has a second 60 within the day: a leap second is 23:59:60 in UTC (RFC 3339, section 5.7)")
    return found + timedelta(seconds=1)


def rfc3339(moment: datetime) -> str:
    """A moment in UTC with microseconds and a Z."""
    if moment.tzinfo is not UTC:  # times from the store are in UTC
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"


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
        size = len(compact(value))
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

OPTIONAL: Final = tuple(_READERS)
"""The names of the optional fields beside a payload."""


_SENTENCES: Final[dict[str, str]] = {}

UNNAMED: Final = "does not have the form that its type declares"
"""The sentence of a pattern that has none of its own."""


def said_as(pattern: str, sentence: str) -> str:
    """Return `pattern`, with `sentence` as the error of a text that does not match it: "may not have line breaks"."""
    _SENTENCES[pattern] = sentence
    return pattern


def sentence_of(pattern: str) -> str | None:
    """The sentence of a pattern; None if it has none."""
    return _SENTENCES.get(pattern)


ASCII: Final = said_as(r"^[\x00-\x7f]*$", "may have only ASCII characters")

AWARE: Final = said_as(
    r"(?:[Zz]|[+\-][0-9]{2}:?[0-9]{2})\s*$|^\s*[+\-]?[0-9.]+\s*$",
    "has no offset from UTC: end it with Z or, for example, +02:00",
)
"""A time with an offset, or in seconds since 1970."""

NAIVE: Final = said_as(
    r"^(?!.*(?:[Zz]|[+\-][0-9]{2}:?[0-9]{2})\s*$)(?!\s*[+\-]?[0-9.]+\s*$)",
    "may have no offset from UTC",
)
"""A time without one."""

DECIMAL: Final = said_as(
    r"^\s*[+\-]?(?:[0-9]+(?:_[0-9]+)*\.?(?:[0-9]+(?:_[0-9]+)*)?|\.[0-9]+(?:_[0-9]+)*)(?:[eE][+\-]?[0-9]+)?\s*$",
    "is not a decimal number, such as 12.50",
)
"""A decimal number written as text."""

INTEGER_NAME: Final = said_as(r"^\s*[+\-]?[0-9]+(?:_[0-9]+)*(?:\.0+)?\s*$", "is not a whole number")
NUMBER_NAME: Final = said_as(r"^\s*[+\-]?(?:[0-9_]+\.?[0-9_]*|\.[0-9_]+)(?:[eE][+\-]?[0-9]+)?\s*$", "is not a number")
"""Keys of an object that a handler reads as numbers."""

BOOLEAN_NAME: Final = said_as(
    "^(?:0|1|[Oo][Nn]|[Oo][Ff][Ff]|[TtFfYyNn]|[Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy][Ee][Ss]|[Nn][Oo])$",
    "is neither true nor false",
)
