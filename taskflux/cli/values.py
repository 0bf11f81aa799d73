"""Option values as people write them: durations, times, payloads, name=value pairs."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final
from uuid import UUID

import click

from taskflux.tasks.bounds import OutOfBounds, check

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d|w)")
_LEAP_SECOND: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:60(?:\.[0-9]+)?(?:[Zz]|[+-][0-9:]+)"
)


def seconds_of(text: str) -> float:
    """`90`, `90s`, `1h30m`, `2d` as seconds.

    Raises:
        ValueError: saying how a duration is written.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if text and _PART.sub("", text) == "":
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    raise ValueError(f"{text!r} is not a duration: write 90, 90s, 10m, 1h30m or 2d")


def moment_of(text: str, now: datetime, *, past: bool) -> str:
    """A time as the API takes it: RFC 3339 as given, or a duration from now (back, where `past`).

    A leap second is sent unchanged: the API reads it, but `datetime` does not.

    Raises:
        ValueError: saying how a time is written.
    """
    if _LEAP_SECOND.fullmatch(text):
        return text
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        given = None
    if given is not None and given.tzinfo is not None:
        return _rfc3339(given)
    if given is not None and not text.isdigit():
        raise ValueError(f"{text!r} has no offset from UTC: end it with Z or, for example, +02:00")
    try:
        shift = timedelta(seconds=seconds_of(text))
        return _rfc3339(now - shift if past else now + shift)
    except (ValueError, OverflowError):
        pass
    ago = "ago" if past else "from now"
    raise ValueError(f"{text!r} is not a time: write 2030-01-31T09:00:00Z, or a duration such as 2h (two hours {ago})")


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


class Duration(click.ParamType[float]):
    """Seconds, written as people do."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return value if isinstance(value, float) else seconds_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Moment(click.ParamType[str]):
    """A time, or a duration back from now (`past`) or ahead."""

    name = "time"

    def __init__(self, *, past: bool) -> None:
        self._past = past

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return moment_of(value, datetime.now(UTC), past=self._past)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Id(click.ParamType[str]):
    """A task's or dead letter's id."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(UUID(value))
        except ValueError:
            self.fail(f"{value!r} is not an id: it looks like 01890a5d-ac96-774b-bcce-b302099a8057", param, ctx)


class Pair(click.ParamType[tuple[str, str]]):
    """`name=value`."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not a pair: write name=value", param, ctx)
        return name, text


def payload_of(argument: str | None, file: BinaryIO | None, stdin: BinaryIO) -> Any:
    """The payload that an argument, `-` (stdin) or a file holds: JSON, or else a plain text.

    What begins like a JSON object, array or string must be one: a typing error would otherwise be sent as text.

    Raises:
        click.UsageError: there is none, or more than one, or it is broken.
    """
    if (argument is None) == (file is None):
        raise click.UsageError("give the payload once: as an argument, as - to read stdin, or with --file")
    if file is not None:
        raw = file.read()
    elif argument == "-":
        raw = stdin.read()
    else:
        raw = (argument or "").encode("utf-8", "surrogateescape")
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the payload is not UTF-8: byte {error.start + 1} is wrong") from None
    return _json_or_text(text if argument is not None and argument != "-" else text.strip())


def _json_or_text(text: str) -> Any:
    like_json = text.lstrip()[:1] in ("{", "[", '"')
    try:
        if like_json:
            check(text.encode("utf-8", "replace"))
        return json.loads(text, parse_constant=_refuse)
    except OutOfBounds as error:
        raise click.UsageError(f"the payload is not taken: {error}") from None
    except json.JSONDecodeError as error:
        if like_json:
            where = f"line {error.lineno}, column {error.colno}"
            raise click.UsageError(f"the payload begins like JSON, but: {error.msg} at {where}") from None
        return text
    except ValueError:
        return text


def _refuse(constant: str) -> object:
    raise ValueError(constant)
