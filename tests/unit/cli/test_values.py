from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import click
import pytest

from taskflux.cli.values import moment_of, payload_of, seconds_of

NOW = datetime(2030, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5", 1.5), ("90s", 90), ("1h30m", 5400), ("2d", 172800), ("1w", 604800)]
)
def test_a_duration_is_written_as_people_do(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1y", "-5", "1h 30m", "h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("text", "past", "moment"),
    [
        ("2030-01-31T09:00:00Z", False, "2030-01-31T09:00:00.000000Z"),
        ("2030-01-31T09:00:00+02:00", True, "2030-01-31T07:00:00.000000Z"),
        ("2030-06-30T23:59:60Z", False, "2030-06-30T23:59:60Z"),
        ("2030-06-30T16:59:60.5-07:00", True, "2030-06-30T16:59:60.5-07:00"),
        ("2h", True, "2030-01-01T22:00:00.000000Z"),
        ("2h", False, "2030-01-02T02:00:00.000000Z"),
    ],
)
def test_a_time_is_absolute_or_counted_from_now(text: str, past: bool, moment: str) -> None:
    assert moment_of(text, NOW, past=past) == moment


@pytest.mark.parametrize("text", ["2030-01-31T09:00:00", "2030-01-31", "tomorrow", "99999999w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time|has no offset"):
        moment_of(text, NOW, past=False)


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ('{"a": 1}', {"a": 1}),
        ("hello", "hello"),
        ('"hello"', "hello"),
        ("5", 5),
        ("NaN", "NaN"),
        ("two words", "two words"),
    ],
)
def test_a_payload_is_json_or_else_a_text(text: str, payload: Any) -> None:
    assert payload_of(text, None, BytesIO()) == payload
    assert payload_of("-", None, BytesIO(f"\ufeff{text}\n".encode())) == payload
    assert payload_of(None, BytesIO(text.encode()), BytesIO()) == payload


@pytest.mark.parametrize("text", ["[" * 65 + "]" * 65, "[" + "0," * 100_000 + "0]"], ids=["deep", "crowded"])
def test_a_payload_that_no_handler_takes_is_not_sent(text: str) -> None:
    with pytest.raises(click.UsageError, match="the payload is not taken: it"):
        payload_of(text, None, BytesIO())


@pytest.mark.parametrize("text", ['{"a": 1', "[1,", '"open'])
def test_what_begins_like_json_must_be_json(text: str) -> None:
    with pytest.raises(click.UsageError, match="begins like JSON"):
        payload_of(text, None, BytesIO())
