"""A worker's lease: whether its claims are surely still its own, so that it may begin a side effect."""

from __future__ import annotations

import time
from collections.abc import Callable

from taskflux.store.claims import Claims


class Lease:
    """A worker's one row, which guards all its `claims`; valid for `seconds` from the beginning of the last good beat.

    `clock` says seconds that no step of the machine's time changes.
    """

    def __init__(self, claims: Claims, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.claims = claims
        self.term = 0
        """The number of this lease: one that is renewed after it had expired is another."""
        self.ended = False
        """Somebody has ended it: no beat brings it back, this worker's identity is spent."""
        self._seconds = seconds
        self._clock = clock
        self._until = float("-inf")

    @property
    def valid(self) -> bool:
        """Whether our claims are surely still ours."""
        return not self.ended and self._clock() < self._until

    def covers(self, term: int) -> bool:
        """Whether claims made in `term` are surely still ours: after a gap, somebody else may hold them."""
        return term == self.term and not self.ended and self._clock() < self._until

    async def renew(self, in_flight: int) -> None:
        """Beat once, with the number of claims that are not settled.

        Raises:
            StoreError: it is not known to be renewed.
        """
        began = self._clock()
        if not await self.claims.beat(in_flight):
            self.ended = True
            return
        if began >= self._until:
            self.term += 1
        self._until = began + self._seconds
