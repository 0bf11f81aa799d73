"""The lease of a worker, which covers all its claims."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from taskflux.store.claims import Claims

log = logging.getLogger(__name__)

# macOS has no CLOCK_BOOTTIME: its CLOCK_MONOTONIC continues while it sleeps; that of Linux does not.
_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds of a clock that is never set, and that continues while the machine is suspended."""
    return time.clock_gettime(_BOOTTIME)


class Lease:
    """A worker's row, which covers all its `claims`; valid for `seconds` from the start of the last successful beat.

    An expired lease cannot be renewed: the worker continues under a new identity, without the claims that it held.
    `clock` runs while the machine is suspended, so that a worker which resumes does not start those claims.

    A worker that lost its lease because it was disconnected or suspended clears its tasks: none of them is suspect. It
    does not clear them if its event loop was blocked for the length of a lease: one of them may have blocked it.
    `awake` is a clock that stops while the machine is suspended.
    """

    def __init__(
        self,
        claims: Claims,
        seconds: float,
        clock: Callable[[], float] = boottime,
        awake: Callable[[], float] = time.monotonic,
    ) -> None:
        self.claims = claims
        self.term = 0
        """The number of this lease; it increases once the lease has expired."""
        self._seconds = seconds
        self._clock = clock
        self._awake = awake
        self._until = float("-inf")
        self._beaten = awake()  # when the last beat ended: the store may delay the next one by any time
        self._stalled = False
        self._renewing = asyncio.Lock()

    @property
    def valid(self) -> bool:
        """Whether this worker certainly still holds its claims."""
        return self._clock() < self._until

    def covers(self, term: int) -> bool:
        """Whether this worker certainly still holds the claims of `term`: after a gap, another worker may hold them."""
        return term == self.term and self.valid

    def lose(self) -> None:
        """The store reported that the lease expired: no claim is covered before the next beat."""
        self._until = float("-inf")

    async def renew(self, in_flight: int) -> None:
        """Beat once, with the number of claims that are not settled.

        Raises:
            StoreError: the lease may not have been renewed.
        """
        async with self._renewing:  # two at once would create two identities
            self._stalled = self._stalled or self._awake() - self._beaten >= self._seconds
            try:
                began = await self._beat(in_flight)
            finally:
                self._beaten = self._awake()
            self._stalled = False
            if began >= self._until:
                self.term += 1
            self._until = began + self._seconds

    async def _beat(self, in_flight: int) -> float:
        """The start of the beat that renewed the lease, or created a new one."""
        began = self._clock()
        if await self.claims.beat(in_flight):
            return began
        self.lose()
        if self.term:
            log.warning("the lease expired: the worker continues with a new one, without the claims that it held")
            if not self._stalled:
                await self.claims.clear_suspects()
        began = self._clock()
        await self.claims.begin(in_flight)
        return began
