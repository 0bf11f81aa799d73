"""How many of a flood may go a second, in whatever batches they come."""

from __future__ import annotations


class Pace:
    """Gives each batch its place in time, so that all of them together do not exceed `rate` a second.

    Times are in seconds of one monotonic clock.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free = float("-inf")

    def start(self, now: float) -> float:
        """Seconds until the first of the next batch may go."""
        return max(0.0, self._free - now)

    def took(self, count: int, now: float) -> None:
        """A batch of `count` was given the place that `start` said."""
        self._free = max(self._free, now) + count / self.rate
