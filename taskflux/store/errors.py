"""The errors of the store, by what the caller does next, and the one way to wait until it is available.

::

    StoreError
    ├── StoreUnavailable   wait and try again: nothing is known to be changed
    ├── StoreBusy          try again at once: a deadlock, a statement that took too long
    ├── RefusedData        this row will never be accepted
    ├── OtherDeclaration   rename one of two task types
    └── SchemaTooOld       run `taskflux migrate`
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import TypeVar

T = TypeVar("T")

FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
"""Seconds between two tries: the first pause, and the longest; each is twice as long as the one before."""


class StoreError(Exception):
    """PostgreSQL did not do what it was asked to do."""


class StoreUnavailable(StoreError):
    """PostgreSQL cannot be reached, or the connection was lost during a statement."""


class StoreBusy(StoreError):
    """The statement was aborted, and may be run again unchanged."""


class RefusedData(StoreError):
    """A value does not fit its column, or a row with its key `exists`."""

    def __init__(self, message: str, *, exists: bool = False) -> None:
        super().__init__(message)
        self.exists = exists


class OtherDeclaration(StoreError):
    """A task type is declared twice with different schemas."""


class SchemaTooOld(StoreError):
    """A table or column is missing."""


def level_of(error: Exception) -> int:
    """The level of a log line about `error` where the work is retried without a limit.

    While PostgreSQL is unavailable, `Database` logs that once for everything that waits for it.
    """
    return logging.DEBUG if isinstance(error, StoreUnavailable) else logging.WARNING


class Stopped(Exception):
    """The caller was told to stop while it waited for PostgreSQL."""


async def until_available(
    work: Callable[[], Awaitable[T]],
    *,
    retry: tuple[type[Exception], ...] = (StoreUnavailable, StoreBusy),
    seconds: float | None = None,
    stop: asyncio.Event | None = None,
    pauses: tuple[float, float] = (FIRST_PAUSE, LAST_PAUSE),
    on_wait: Callable[[Exception], None] = lambda error: None,
) -> T:
    """The result of `work`, which is tried again while it raises one of `retry`; it must be safe to repeat.

    Args:
        work: a try that has begun is not interrupted.
        retry: errors that pass by themselves.
        seconds: how long to retry; None: without a limit.
        stop: ends the waiting.
        pauses: seconds between two tries: the first, and the longest.
        on_wait: called with the error before each pause.

    Raises:
        Stopped: `stop` was set before a try succeeded.
        Exception: what the last try raised: another error, or the time is up.
    """
    loop = asyncio.get_running_loop()
    deadline = inf if seconds is None else loop.time() + seconds
    stop = stop or asyncio.Event()
    tries = 0
    while not stop.is_set():
        try:
            return await work()
        except retry as error:
            left = deadline - loop.time()
            if left <= 0:
                raise
            on_wait(error)
        tries += 1
        await _pause(tries, stop, pauses, left)
    raise Stopped


async def _pause(tries: int, stop: asyncio.Event, pauses: tuple[float, float], at_most: float) -> None:
    """Wait before the next try, after `tries` that failed: `at_most` so many seconds, or until `stop` is set."""
    first, longest = pauses
    with suppress(TimeoutError):
        async with asyncio.timeout(min(first * 2.0 ** min(tries - 1, 30), longest, at_most)):
            await stop.wait()
