"""A worker's lease: its beats, and whether it may still begin a side effect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from taskflux.store.claims import Claims
from taskflux.store.errors import StoreError

log = logging.getLogger(__name__)


class Lease:
    """Renews a worker's one row; valid for `seconds` (monotonic) from the beginning of the last good beat."""

    def __init__(self, claims: Claims, seconds: float, in_flight: Callable[[], int]) -> None:
        self._claims = claims
        self._seconds = seconds
        self._in_flight = in_flight
        self._until = 0.0
        self._term = 0
        self._ended = False

    @property
    def valid(self) -> bool:
        """Whether our claims are surely still ours."""
        return not self._ended and asyncio.get_running_loop().time() < self._until

    @property
    def term(self) -> int:
        """The number of this lease: one that is renewed after it had run out is another."""
        return self._term

    def covers(self, term: int) -> bool:
        """Whether claims made in `term` are surely still ours: after a gap, somebody else may hold them."""
        return term == self._term and self.valid

    @property
    def ended(self) -> bool:
        """Whether somebody has ended it: no beat brings it back, this worker's identity is spent."""
        return self._ended

    async def renew(self) -> None:
        """Beat once.

        Raises:
            StoreError: it is not known to be renewed.
        """
        began = asyncio.get_running_loop().time()
        if await self._claims.beat(self._in_flight()):
            if began >= self._until:
                self._term += 1
            self._until = began + self._seconds
        else:
            self._ended = True

    async def keep(self, seconds: float) -> None:
        """Beat every `seconds` until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.renew()
            except StoreError as error:
                log.warning("the lease could not be renewed", extra={"error": str(error)})
