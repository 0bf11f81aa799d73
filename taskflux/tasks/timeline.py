"""A task's timeline as a reader sees it.

On the row it is an array of texts, `at|event|state|attempt|times|note`, at most 32: a full one folds repeats of the
same cause into one entry that counts them. A note holds no `|`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NotRequired, TypedDict


class TimelineEntry(TypedDict):
    """What happened to a task: `at` is RFC 3339 in UTC, `attempt` counts from 1 (0: none was made yet).

    `times` stands only where repeats were folded, `note` only where there is something to say.
    """

    at: str
    event: str
    state: str
    attempt: int
    times: NotRequired[int]
    note: NotRequired[str]


def parse_entry(text: str) -> TimelineEntry:
    """One entry of the row's array.

    Raises:
        ValueError: it is not one.
    """
    at, event, state, attempt, times, note = text.split("|", 5)
    entry: TimelineEntry = {"at": at, "event": event, "state": state, "attempt": int(attempt)}
    if times != "1":
        entry["times"] = int(times)
    if note:
        entry["note"] = note
    return entry


def parse_timeline(entries: Iterable[str]) -> list[TimelineEntry]:
    """All entries, oldest first."""
    return [parse_entry(entry) for entry in entries]
