"""A provider's rate limit: shared by all processes through Redis, or this process's own without it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskflux.store.accelerator import Accelerator


class Limiter:
    """Gives out turns at `rate` a second; `rate` None gives them at once.

    A tenth of a second's worth may go at once, so that a limit of 500 a second does not wait 500 times.
    """

    def __init__(
        self,
        name: str,
        rate: float | None,
        accelerator: Accelerator,
        observe: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._name = name
        self._rate = rate
        self._burst = max(0.0, rate / 10 - 1) if rate else 0.0  # turns beside the one that is due
        self._accelerator = accelerator
        self._observe = observe
        self._arrival = 0.0

    async def turn(self) -> None:
        """Wait for the next turn."""
        if self._rate is None:
            return
        wait = await self._accelerator.turn(self._name, self._rate, self._burst)
        if wait is None:
            wait = self._own_turn(self._rate)
        self._observe(wait)
        if wait > 0:
            await asyncio.sleep(wait)

    def _own_turn(self, rate: float) -> float:
        now = asyncio.get_running_loop().time()
        arrival = max(self._arrival, now)
        self._arrival = arrival + 1 / rate
        return max(0.0, arrival - self._burst / rate - now)
