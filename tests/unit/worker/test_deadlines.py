"""Handlers that have not ended in time: one timer tells of them all."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from time import monotonic
from typing import Any, Final, cast

from taskflux.worker.attempt import EARLY, Deadlines, Running

LIMIT: Final = 0.05


class Watch:
    """Attempts that began, and those that were told of as late, with the seconds since they began."""

    def __init__(self) -> None:
        self.deadlines = Deadlines(LIMIT, self._late)
        self.late: list[tuple[Running, float]] = []
        self._began: dict[Running, float] = {}
        self._told = asyncio.Semaphore(0)

    def begin(self) -> Running:
        """The handler of an attempt is called."""
        attempt = Running(cast("Any", None), 1, False, 0.0, copy_context())
        self._began[attempt] = monotonic()
        self.deadlines.begin(attempt)
        return attempt

    async def told(self, count: int) -> list[Running]:
        """Return once so many more were told of; all that were."""
        async with asyncio.timeout(20):
            for _ in range(count):
                await self._told.acquire()
        return [attempt for attempt, _ in self.late]

    def _late(self, attempt: Running) -> None:
        self.late.append((attempt, monotonic() - self._began[attempt]))
        self._told.release()


async def test_each_is_told_of_once_in_the_order_of_the_calls_and_not_before_its_time() -> None:
    watch, began = Watch(), []
    for _ in range(4):
        began.append(watch.begin())
        await asyncio.sleep(LIMIT / 5)
    assert await watch.told(4) == began
    assert min(seconds for _, seconds in watch.late) >= LIMIT - EARLY
    await asyncio.sleep(2 * LIMIT)
    assert len(watch.late) == 4


async def test_one_that_has_ended_is_not_late_and_those_behind_it_are() -> None:
    watch = Watch()
    ended, late, ended_too = watch.begin(), watch.begin(), watch.begin()
    watch.deadlines.end(ended)
    watch.deadlines.end(ended_too)
    assert await watch.told(1) == [late]
    watch.deadlines.end(late)  # it was told of, and ends now
    await asyncio.sleep(2 * LIMIT)
    assert len(watch.late) == 1


async def test_one_that_begins_after_the_timer_had_nothing_left_is_told_of() -> None:
    watch = Watch()
    first = watch.begin()
    await watch.told(1)
    await asyncio.sleep(2 * LIMIT)
    second = watch.begin()
    assert await watch.told(1) == [first, second]
