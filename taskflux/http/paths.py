"""Task ids as they stand in paths."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from taskflux.http.problems import UNKNOWN_TASK, Problem
from taskflux.telemetry.logs import TASK

_UUID_LENGTH: Final = 36


def task_id(text: str) -> UUID:
    """The task id that stands in a path: the request is about this task, in the log, too.

    Raises:
        Problem: 404, no task can have this id.
    """
    try:
        if len(text) == _UUID_LENGTH:
            task = UUID(text)
            TASK.set(task)
            return task
    except ValueError:
        pass
    raise unknown_task(text[:100])


def unknown_task(text: str) -> Problem:
    """The problem of an id that no task of the caller has."""
    return Problem(UNKNOWN_TASK, f"no task has the id {text!r}; it may have been deleted after its retention")
