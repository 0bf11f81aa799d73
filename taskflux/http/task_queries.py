"""What `GET /tasks` is asked: filters, pages and cursors. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from taskflux.http.problems import BAD_REQUEST, INVALID_QUERY, FieldError, Problem
from taskflux.http.registry import shortened
from taskflux.http.submissions import LONGEST_KEY, moment
from taskflux.store.tasks import TaskFilter
from taskflux.tasks.states import State

MOST_ON_A_PAGE: Final = 200
USUAL_PAGE: Final = 50
LONGEST_TYPE: Final = 255
LONGEST_MEMBER: Final = 1000
MOST_MEMBERS: Final = 10
METADATA: Final = "metadata."
_CURSOR_VERSION: Final = b"\x01"
_CURSOR_LENGTH: Final = 1 + 16 + 4


@dataclass(frozen=True, slots=True)
class Browse:
    """A page that is wanted, behind the task `after`."""

    wanted: TaskFilter
    limit: int
    after: UUID | None


def read_browse(parameters: Iterable[tuple[str, str]]) -> Browse:
    """The page that a query asks for.

    Raises:
        Problem: 422, naming each parameter that cannot be taken; 400, the cursor is none, or that of another query.
    """
    given, errors = _once(parameters)
    members = {name.removeprefix(METADATA): given.pop(name) for name in list(given) if name.startswith(METADATA)}
    errors += _wrong_members(members) + _unknown(given)
    values: dict[str, Any] = {}
    for name, read in _READERS.items():
        if name not in given:
            continue
        try:
            values[name] = read(given[name])
        except (ValueError, OverflowError) as error:
            errors.append(FieldError(name, str(error) if type(error) is ValueError else "is out of range"))
    if errors:
        names = ", ".join(dict.fromkeys(error.field for error in errors))
        raise Problem(INVALID_QUERY, shortened(f"not valid: {names}", 400), errors)
    wanted = TaskFilter(
        values.get("status"),
        values.get("taskType"),
        values.get("createdAfter"),
        values.get("createdBefore"),
        values.get("key"),
        members,
    )
    after = read_cursor(given["cursor"], wanted) if "cursor" in given else None
    return Browse(wanted, values.get("limit", USUAL_PAGE), after)


def write_cursor(after: UUID, wanted: TaskFilter) -> str:
    """The opaque text that asks for what stands behind `after` in the list of `wanted`."""
    return base64.urlsafe_b64encode(_CURSOR_VERSION + after.bytes + _fingerprint(wanted)).decode("ascii")


def read_cursor(text: str, wanted: TaskFilter) -> UUID:
    """The task that `write_cursor` was given.

    Raises:
        Problem: 400, it wrote no such text, or for another list.
    """
    try:
        cursor = base64.b64decode(text, altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        cursor = b""
    if len(cursor) != _CURSOR_LENGTH or cursor[:1] != _CURSOR_VERSION:
        raise _bad_cursor("is not a cursor: give a nextCursor as it came")
    if cursor[17:] != _fingerprint(wanted):
        raise _bad_cursor("belongs to a list with other filters: give the same ones on every page")
    return UUID(bytes=cursor[1:17])


def _bad_cursor(message: str) -> Problem:
    return Problem(BAD_REQUEST, f"the cursor {message}", [FieldError("cursor", message)])


def _fingerprint(wanted: TaskFilter) -> bytes:
    times = [time and time.isoformat() for time in (wanted.created_from, wanted.created_before)]
    text = json.dumps([wanted.state, wanted.type, *times, wanted.key, sorted(wanted.metadata.items())])
    return hashlib.sha256(text.encode("ascii")).digest()[:4]


def _once(parameters: Iterable[tuple[str, str]]) -> tuple[dict[str, str], list[FieldError]]:
    given: dict[str, str] = {}
    errors = []
    for name, value in parameters:
        if name in given:
            errors.append(FieldError(shortened(name, 100), "is given more than once"))
        given[name] = value
    return given, errors[:20]


def _unknown(given: Mapping[str, str]) -> list[FieldError]:
    """A name that nobody knows is refused: it may be meant as a filter."""
    known = ", ".join([*_READERS, METADATA + "<name>", "cursor"])
    return [
        FieldError(shortened(name, 100), f"is not known here; known are {known}")
        for name in sorted(given.keys() - _READERS.keys() - {"cursor"})[:20]
    ]


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


def _text(most: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not 1 <= len(text) <= most or not text.isprintable():
            raise ValueError(f"must be a text of 1 to {most} printable characters")
        return text

    return read


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MOST_ON_A_PAGE):
        raise ValueError(f"must be a whole number from 1 to {MOST_ON_A_PAGE}")
    return int(text)


def _moment(text: str) -> datetime:
    # A + that was not escaped arrives as a space, and in a time can only have been one.
    return moment(text.replace(" ", "+") if text[10:11] in "Tt" else text)


_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "status": _status,
    "taskType": _text(LONGEST_TYPE),
    "createdAfter": _moment,
    "createdBefore": _moment,
    "key": _text(LONGEST_KEY),
    "limit": _limit,
}
