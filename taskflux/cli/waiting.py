"""Patience with servers that are not there yet: they and we may be started by the same hand."""

from __future__ import annotations

import time
from asyncio import sleep
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from taskflux.store.errors import SchemaTooOld, StoreBusy, StoreUnavailable
from taskflux.stream.errors import KafkaUnavailable

T = TypeVar("T")

NOT_YET: Final = (StoreUnavailable, StoreBusy, SchemaTooOld, KafkaUnavailable)
"""What passes by itself: a server that starts, and a schema that somebody else is about to bring up to date."""

_FIRST_PAUSE, _LAST_PAUSE = 0.5, 5.0
TELL_AGAIN: Final = 15.0
"""Seconds between two lines about the same trouble."""


class Patience:
    """A time, counted from here on, in which work is tried again while a server is away.

    `tell` gets what is waited for, and for how many seconds more: at first, when it is something else, and now and
    then.
    """

    def __init__(self, seconds: float, tell: Callable[[Exception, float], None]) -> None:
        self._until = time.monotonic() + seconds
        self._tell = tell
        self._told: tuple[str, float] | None = None

    async def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, which must bear being done again. A try that has begun is not cut short.

        Raises:
            Exception: what the last try raised.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return await work()
            except NOT_YET as error:
                left = self._until - time.monotonic()
                if left <= 0:
                    raise
                self._say(error, left)
            await sleep(min(pause, left))
            pause = min(pause * 2, _LAST_PAUSE)

    def _say(self, error: Exception, left: float) -> None:
        now, said = time.monotonic(), str(error)
        if self._told is None or self._told[0] != said or now - self._told[1] >= TELL_AGAIN:
            self._told = said, now
            self._tell(error, left)
