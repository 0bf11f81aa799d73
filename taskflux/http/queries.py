"""Queries of lists and of bulk replays: filters, pages and cursors. Pure.

Each reader returns what was asked for, or raises a Problem (422) that names everything that is wrong. An unknown name
is refused: it may be meant as a filter. A cursor belongs to the filters of its list, and is refused with others.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from taskflux.http.problems import (
    EMPTY_FILTER,
    INVALID_QUERY,
    INVALID_REPLAY,
    FieldError,
    Problem,
    not_valid,
    shortened,
    unknown_fields,
)
from taskflux.store.dead_letters import OPEN, DeadLetterFilter, Place, Plan
from taskflux.store.tasks import SearchTooLong, TaskFilter
from taskflux.store.texts import indexed
from taskflux.tasks.fields import LONGEST_KEY, moment, rfc3339
from taskflux.tasks.states import State

F = TypeVar("F")
P = TypeVar("P")
Parameters = Iterable[tuple[str, str]]
Reader = Callable[[Any], Any]
"""From what was given to what is meant; raises ValueError with a sentence, or OverflowError."""

MOST_ON_A_PAGE: Final = 200
USUAL_PAGE: Final = 50
LONGEST_TEXT: Final = 255
LONGEST_NAME: Final = 10_000
LONGEST_MEMBER: Final = 1000
MOST_MEMBERS: Final = 10
METADATA: Final = "metadata."
CAUSE: Final = r"[0-9]{1,4}-[0-9a-f]{8,32}"
_CAUSE: Final = re.compile(CAUSE, re.ASCII)
STATES: Final = (OPEN, "replayed", "discarded")
ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Query(Generic[F, P]):
    """A page of a list, after the place `after`. `state` is of dead letters; None means every state."""

    wanted: F
    limit: int
    after: P | None
    state: str | None = None


def read_task_query(parameters: Parameters) -> Query[TaskFilter, UUID]:
    """The page of tasks that a query asks for."""
    given, errors = _once(parameters)
    members = {name.removeprefix(METADATA): given.pop(name) for name in list(given) if name.startswith(METADATA)}
    errors += _wrong_members(members)
    values = read_fields(given, _TASKS | {"limit": _limit, "cursor": _task_cursor}, errors, also=(METADATA + "<name>",))
    if errors:
        raise not_valid(INVALID_QUERY, errors)
    filters: list[Any] = [*map(values.get, _TASKS), members]
    wanted = TaskFilter(*filters)
    return Query(wanted, values.get("limit", USUAL_PAGE), _after(values.get("cursor"), wanted))


def too_rare(found_none: SearchTooLong) -> Problem:
    """The answer to a search that has found nothing in its time: what to change."""
    since = rfc3339(found_none.since)
    said = f"no task accepted since {since} fits, and there is more to search: go on with createdBefore={since}"
    errors = [
        FieldError(
            METADATA + shortened(name, 100),
            f"is not indexed; {said}, or add this key to TASKFLUX_POSTGRES__METADATA_KEYS and run `taskflux migrate`",
        )
        for name in found_none.not_indexed
    ]
    return not_valid(INVALID_QUERY, errors or [FieldError("createdBefore", said)])


def read_dead_letter_query(parameters: Parameters, *, paged: bool = True) -> Query[DeadLetterFilter, Place]:
    """The page of dead letters that a query asks for; without `paged` all of them, which takes no limit or cursor."""
    given, errors = _once(parameters)
    page = {"limit": _limit, "cursor": _dead_letter_cursor} if paged else {}
    values = read_fields(given, {**DEAD_LETTER_FILTERS, "state": _state, **page}, errors)
    if errors:
        raise not_valid(INVALID_QUERY, errors)
    wanted, state = DeadLetterFilter(*map(values.get, DEAD_LETTER_FILTERS)), values.get("state", OPEN)
    return Query(wanted, values.get("limit", USUAL_PAGE), _after(values.get("cursor"), wanted, state), state)


def _once(parameters: Parameters) -> tuple[dict[str, str], list[FieldError]]:
    given: dict[str, str] = {}
    errors = []
    for name, value in parameters:
        if name in given:
            errors.append(FieldError(shortened(name, 100), "is given more than once"))
        given[name] = value
    return given, errors[:20]


def read_fields(
    given: Mapping[str, Any],
    readers: Mapping[str, Reader],
    errors: list[FieldError],
    root: str = "",
    also: Iterable[str] = (),
) -> dict[str, Any]:
    """The given values, read; null counts as absent. Errors are added to `errors`; `also` names other known fields."""
    errors += unknown_fields(given, [*readers, *also], root)
    values: dict[str, Any] = {}
    for name, read in readers.items():
        if (value := given.get(name)) is None:
            continue
        try:
            values[name] = read(value)
        except (ValueError, OverflowError) as error:
            errors.append(FieldError(root + name, str(error) if type(error) is ValueError else "is out of range"))
    return values


# A cursor is a version, the place of the last item, and the digest of what its list was filtered by.
_VERSION: Final = b"\x01"
_DIGEST: Final = 4
"""Bytes."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NO_CURSOR: Final = "is not a cursor: pass a nextCursor on unchanged"


def task_cursor(task: UUID, query: Query[Any, UUID]) -> str:
    """The cursor of what follows this task, or this job, in the same list."""
    return _write_cursor(task.bytes, query.wanted)


def dead_letter_cursor(row: Mapping[str, Any], query: Query[DeadLetterFilter, Place]) -> str:
    """The cursor of what follows this dead letter in the same list."""
    since = (row["created_at"] - _EPOCH) // timedelta(microseconds=1)
    return _write_cursor(since.to_bytes(8, "big", signed=True) + row["id"].bytes, query.wanted, query.state)


def _write_cursor(place: bytes, *filters: object) -> str:
    return base64.urlsafe_b64encode(_VERSION + place + _digest(filters)).decode("ascii")


def _digest(filters: object) -> bytes:
    def told(value: Any) -> object:
        return value.isoformat() if isinstance(value, datetime) else asdict(value)

    return hashlib.sha256(json.dumps(filters, default=told, sort_keys=True).encode("ascii")).digest()[:_DIGEST]


def _read_cursor(text: str, size: int) -> tuple[bytes, bytes]:
    """The place, of `size` bytes, and the digest."""
    try:
        cursor = base64.b64decode(text, altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        cursor = b""
    if len(cursor) != 1 + size + _DIGEST or not cursor.startswith(_VERSION):
        raise ValueError(_NO_CURSOR)
    return cursor[1:-_DIGEST], cursor[-_DIGEST:]


def _task_cursor(text: str) -> tuple[UUID, bytes]:
    place, digest = _read_cursor(text, 16)
    return UUID(bytes=place), digest


def _dead_letter_cursor(text: str) -> tuple[Place, bytes]:
    place, digest = _read_cursor(text, 24)
    try:
        created_at = _EPOCH + timedelta(microseconds=int.from_bytes(place[:8], "big", signed=True))
    except OverflowError:
        raise ValueError(_NO_CURSOR) from None
    return Place(created_at, UUID(bytes=place[8:])), digest


def _after(cursor: tuple[P, bytes] | None, *filters: object) -> P | None:
    if cursor is None:
        return None
    place, digest = cursor
    if digest != _digest(filters):
        said = "belongs to a list with other filters: give the same ones on every page"
        raise not_valid(INVALID_QUERY, [FieldError("cursor", said)])
    return place


def _wrong_members(members: Mapping[str, str]) -> list[FieldError]:
    if len(members) > MOST_MEMBERS:
        return [FieldError(METADATA + "<name>", f"is given for more than {MOST_MEMBERS} names")]
    return [
        FieldError(shortened(METADATA + name, 100), f"is longer than {LONGEST_MEMBER} characters")
        for name, value in members.items()
        if max(len(name), len(value)) > LONGEST_MEMBER
    ]


def _status(text: str) -> State:
    try:
        return State(text)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(State)}") from None


def _state(text: str) -> str | None:
    if text not in (*STATES, ALL):
        raise ValueError(f"must be one of {', '.join(STATES)}, {ALL}")
    return None if text == ALL else text


def _text(most: int) -> Reader:
    def read(value: object) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= most or not value.isprintable():
            raise ValueError(f"must be a text of 1 to {most} printable characters")
        return value

    return read


def _name(value: object) -> str:
    """A name as its column holds it: a whole name also finds names that were cut."""
    return indexed(_text(LONGEST_NAME)(value))


def _cause(value: object) -> str:
    if not isinstance(value, str) or not _CAUSE.fullmatch(value):
        raise ValueError("must be a cause as the groups show it, such as 1-4f0c2a9be371")
    return value


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MOST_ON_A_PAGE):
        raise ValueError(f"must be a whole number from 1 to {MOST_ON_A_PAGE}")
    return int(text)


def _moment(text: str) -> datetime:
    # A + that was not escaped arrives as a space, and in a time can only have been one.
    return moment(text.replace(" ", "+") if text[10:11] in "Tt" else text)


# In the order of the fields of TaskFilter and DeadLetterFilter.
_TIMES: Final[dict[str, Reader]] = {"createdAfter": _moment, "createdBefore": _moment}
_TASKS: Final[dict[str, Reader]] = {
    "status": _status,
    "taskType": _text(LONGEST_TEXT),
    **_TIMES,
    "key": _text(LONGEST_KEY),
}
DEAD_LETTER_FILTERS: Final[dict[str, Reader]] = {
    "taskType": _text(LONGEST_TEXT),
    "errorClass": _name,
    **_TIMES,
    "originTopic": _name,
    "cause": _cause,
}


USUAL_RATE: Final = 50.0
LEAST_RATE, MOST_RATE = 0.01, 5_000.0
USUAL_CANARY, MOST_CANARY = 10, 1_000
USUAL_CANARY_SECONDS, MOST_CANARY_SECONDS = 300.0, 86_400.0
USUAL_FAILURES: Final = 0.5
LONGEST_REASON: Final = 1000


@dataclass(frozen=True, slots=True)
class Bulk:
    """What is to be done with the dead letters that a filter finds. `rate` None follows the type's throughput."""

    wanted: DeadLetterFilter
    rate: float | None
    dry_run: bool
    plan: Plan


def read_bulk(document: Mapping[str, Any], *, discards: bool = False) -> Bulk:
    """The bulk replay, or discard, that a body asks for.

    Raises:
        Problem: 422, naming each invalid field; or the filter is empty.
    """
    errors: list[FieldError] = []
    values = read_fields(document, _DISCARD if discards else _REPLAY, errors)
    if discards and "reason" not in values and not any(error.field == "reason" for error in errors):
        errors.append(FieldError("reason", "is required: it is stored with each of them"))
    readers = DEAD_LETTER_FILTERS | {"createdAfter": moment, "createdBefore": moment}
    found = read_fields(values.get("filter", {}), readers, errors, "filter.")
    if errors:
        raise not_valid(INVALID_REPLAY, errors)
    wanted = DeadLetterFilter(*map(found.get, DEAD_LETTER_FILTERS))
    if wanted.empty:
        known = ", ".join(DEAD_LETTER_FILTERS)
        detail = f"say which dead letters: give at least one of {known}; for all of them, createdBefore: now"
        raise Problem(EMPTY_FILTER, detail, [FieldError("filter", "is empty")])
    plan = Plan(
        values.get("actor"),
        values.get("reason"),
        values.get("canary", USUAL_CANARY),
        values.get("canarySeconds", USUAL_CANARY_SECONDS),
        values.get("maxFailureRate", USUAL_FAILURES),
    )
    return Bulk(wanted, values.get("rate"), values.get("dryRun", False), plan)


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


def _number(least: float, most: float, *, whole: bool = False) -> Reader:
    def read(value: object) -> float:
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not least <= value <= most:  # type: ignore[operator]
            raise ValueError(f"must be a {'whole ' if whole else ''}number from {least:g} to {most:g}")
        return value  # type: ignore[return-value]

    return read


def _reason(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value.strip()) <= LONGEST_REASON:
        raise ValueError(f"must be a text of 1 to {LONGEST_REASON} printable characters")
    return value.strip()


_ANY_BULK: Final[dict[str, Reader]] = {"filter": _object, "dryRun": _boolean, "actor": _text(100)}
_REPLAY: Final[dict[str, Reader]] = {
    **_ANY_BULK,
    "rate": _rate,
    "canary": _number(0, MOST_CANARY, whole=True),
    "canarySeconds": _number(1, MOST_CANARY_SECONDS),
    "maxFailureRate": _number(0, 1),
}
_DISCARD: Final[dict[str, Reader]] = {**_ANY_BULK, "reason": _reason}


def read_job_query(parameters: Parameters) -> Query[None, UUID]:
    """The page of jobs that a query asks for."""
    given, errors = _once(parameters)
    values = read_fields(given, {"limit": _limit, "cursor": _task_cursor}, errors)
    if errors:
        raise not_valid(INVALID_QUERY, errors)
    return Query(None, values.get("limit", USUAL_PAGE), _after(values.get("cursor"), None))
