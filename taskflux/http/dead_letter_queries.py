"""What is asked of the dead letters: filters, pages and cursors. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from taskflux.http.problems import EMPTY_FILTER, INVALID_QUERY, INVALID_REPLAY, FieldError, Kind, Problem
from taskflux.http.registry import shortened
from taskflux.http.submissions import moment
from taskflux.store.dead_letters import OPEN, LetterFilter, Place

MOST_ON_A_PAGE: Final = 200
USUAL_PAGE: Final = 50
LONGEST_TEXT: Final = 255
STATES: Final = (OPEN, "replayed", "discarded")
ALL: Final = "all"
USUAL_RATE: Final = 50.0
LEAST_RATE, MOST_RATE = 0.01, 5_000.0


@dataclass(frozen=True, slots=True)
class Browse:
    """A page that is wanted; `state` None takes letters of every state."""

    wanted: LetterFilter
    state: str | None
    behind: Place | None
    limit: int


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """A bulk replay that is asked for, at `rate` letters a second; `dry_run` only counts."""

    wanted: LetterFilter
    rate: float
    dry_run: bool


def read_browse(parameters: Iterable[tuple[str, str]]) -> Browse:
    """The page that a query asks for.

    Raises:
        Problem: 422, naming each parameter that cannot be taken.
    """
    given = _once(parameters)
    values = _read(given, {**_FILTERS, "state": _state, "limit": _limit, "cursor": read_cursor}, INVALID_QUERY)
    return Browse(_filter(values), values.get("state", OPEN), values.get("cursor"), values.get("limit", USUAL_PAGE))


def read_groups(parameters: Iterable[tuple[str, str]]) -> tuple[LetterFilter, str | None]:
    """The filter and state that a query for groups asks for.

    Raises:
        Problem: 422, naming each parameter that cannot be taken.
    """
    values = _read(_once(parameters), {**_FILTERS, "state": _state}, INVALID_QUERY)
    return _filter(values), values.get("state", OPEN)


def read_bulk(document: Mapping[str, Any]) -> BulkRequest:
    """The bulk replay that a body asks for.

    Raises:
        Problem: 422, naming each field that cannot be taken; or the filter is empty.
    """
    values = _read(document, {"filter": _object, "dryRun": _boolean, "rate": _rate}, INVALID_REPLAY)
    wanted = _filter(_read(values.get("filter", {}), _FILTERS, INVALID_REPLAY, "filter."))
    if wanted.empty:
        known = ", ".join(_FILTERS)
        detail = f"say which dead letters: the filter names at least one of {known}; to mean all, createdBefore now"
        raise Problem(EMPTY_FILTER, detail, [FieldError("filter", "is empty")])
    return BulkRequest(wanted, values.get("rate", USUAL_RATE), values.get("dryRun", False))


def cursor_of(row: Mapping[str, Any]) -> str:
    """The opaque text that asks for what stands behind this letter."""
    place = f"{row['created_at'].isoformat()} {row['id']}"
    return base64.urlsafe_b64encode(place.encode("ascii")).decode("ascii").rstrip("=")


def read_cursor(text: object) -> Place:
    """The place that `cursor_of` wrote.

    Raises:
        ValueError: it wrote no such text.
    """
    try:
        padded = str(text) + "=" * (-len(str(text)) % 4)
        at, _, letter = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii").partition(" ")
        created_at = datetime.fromisoformat(at)
        if created_at.tzinfo is None:
            raise ValueError
        return Place(created_at.astimezone(UTC), UUID(letter))
    except (ValueError, OverflowError, binascii.Error):
        raise ValueError("is not a cursor: give a nextCursor as it came") from None


def _once(parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in parameters:
        if name in given:
            raise _invalid(INVALID_QUERY, [FieldError(shortened(name, 100), "is given more than once")])
        given[name] = value
    return given


def _read(
    given: Mapping[str, Any], readers: Mapping[str, Callable[[Any], Any]], kind: Kind, root: str = ""
) -> dict[str, Any]:
    """What is given, read; null is as good as absent. A name that nobody knows is refused: it may be a filter."""
    known = ", ".join(readers)
    errors = [
        FieldError(root + shortened(name, 100), f"is not known here; known are {known}")
        for name in sorted(given.keys() - readers.keys())[:20]
    ]
    values: dict[str, Any] = {}
    for name, read in readers.items():
        if (value := given.get(name)) is None:
            continue
        try:
            values[name] = read(value)
        except (ValueError, OverflowError) as error:
            errors.append(FieldError(root + name, str(error) if type(error) is ValueError else "is out of range"))
    if errors:
        raise _invalid(kind, errors)
    return values


def _invalid(kind: Kind, errors: list[FieldError]) -> Problem:
    names = ", ".join(error.field for error in errors)
    return Problem(kind, shortened(f"not valid: {names}", 400), errors)


def _filter(values: Mapping[str, Any]) -> LetterFilter:
    return LetterFilter(
        values.get("taskType"),
        values.get("errorClass"),
        values.get("createdAfter"),
        values.get("createdBefore"),
        values.get("originTopic"),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_TEXT or not value.isprintable():
        raise ValueError(f"must be a text of 1 to {LONGEST_TEXT} printable characters")
    return value


def _state(value: str) -> str | None:
    if value not in (*STATES, ALL):
        raise ValueError(f"must be one of {', '.join(STATES)}, {ALL}")
    return None if value == ALL else value


def _limit(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= MOST_ON_A_PAGE):
        raise ValueError(f"must be a whole number from 1 to {MOST_ON_A_PAGE}")
    return int(value)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_RATE <= value <= MOST_RATE:
        raise ValueError(f"must be a number of dead letters a second from {LEAST_RATE:g} to {MOST_RATE:g}")
    return float(value)


_FILTERS: Final[dict[str, Callable[[Any], Any]]] = {
    "taskType": _text,
    "errorClass": _text,
    "createdAfter": moment,
    "createdBefore": moment,
    "originTopic": _text,
}
