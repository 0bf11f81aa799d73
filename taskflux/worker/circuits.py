"""What a process knows of the providers' circuits: read about once a second, changed by what it sees itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Final
from uuid import UUID

from taskflux.store.accelerator import Accelerator
from taskflux.store.circuits import Circuit, Circuits
from taskflux.store.errors import StoreError
from taskflux.tasks.circuit import RAMP_SECONDS, Health
from taskflux.tasks.errors import ProviderError
from taskflux.telemetry import metrics

log = logging.getLogger(__name__)

REFRESH: Final = 1.0
"""Seconds between two looks at the circuits."""


class CircuitWatch:
    """All circuits, as they stood a moment ago."""

    def __init__(self, circuits: Circuits) -> None:
        self.store = circuits
        self._known: Mapping[str, Circuit] = {}

    async def refresh(self) -> Mapping[str, Circuit]:
        """Read them again.

        Raises:
            StoreError: they could not be read; what was known stays.
        """
        self._known = await self.store.all()
        return self._known

    async def keep_fresh(self) -> None:
        """Refresh until cancelled; while PostgreSQL is away, what was known is kept."""
        while True:
            try:
                await self.refresh()
            except StoreError as error:
                log.debug("circuits could not be read", extra={"error": str(error)})
            await asyncio.sleep(REFRESH)

    def is_open(self, provider: str | None) -> bool:
        """Whether nothing may be asked of `provider`."""
        circuit = self._known.get(provider) if provider else None
        return circuit is not None and circuit.open

    def flowing(self, provider: str | None) -> bool:
        """Whether work for `provider` may be published without limit."""
        circuit = self._known.get(provider) if provider else None
        if circuit is None:
            return True
        return not circuit.open and (circuit.closed_for is None or circuit.closed_for >= RAMP_SECONDS)


class Gate:
    """One worker's judgement of its provider: opens the circuit on failures, closes it on a success."""

    def __init__(self, provider: str | None, watch: CircuitWatch) -> None:
        self.provider = provider
        self._watch = watch
        self._health = Health()

    @property
    def open(self) -> bool:
        """Whether tasks are handed back instead of run."""
        return self._watch.is_open(self.provider)

    def succeeded_since(self, then: float) -> bool:
        """Whether the provider served any task after monotonic time `then`."""
        return self._health.succeeded_since(then)

    async def served(self) -> None:
        """The provider did its work, or refused a task for the task's own fault: it is there."""
        self._health.success(asyncio.get_running_loop().time())
        if self.provider is not None and self.open:
            await self._change(self._watch.store.close(self.provider), "the circuit is closed")

    async def failed(self, task: UUID, error: ProviderError) -> None:
        """The provider failed for `task`: several different ones open the circuit."""
        if self.provider is None or not self._health.failure(task) or self.open:
            return
        opening = self._watch.store.open(self.provider, error.error_class, error.reason)
        await self._change(opening, "the circuit is open", error.error_class)

    async def _change(self, change: Awaitable[bool], message: str, error_class: str = "") -> None:
        try:
            if await change:
                log.warning(message, extra={"provider": self.provider, "error_class": error_class})
            await self._watch.refresh()
        except StoreError as error:
            # The next failure or success says it again.
            log.warning("the circuit could not be changed", extra={"provider": self.provider, "error": str(error)})


class Limiter:
    """Gives out turns at `rate` a second; `rate` None gives them at once.

    A tenth of a second's worth may go at once, so that a limit of 500 a second does not wait 500 times.
    """

    def __init__(self, name: str, rate: float | None, accelerator: Accelerator) -> None:
        self._name = name
        self._rate = rate
        self._burst = max(0.0, rate / 10 - 1) if rate else 0.0  # turns beside the one that is due
        self._accelerator = accelerator
        self._waited = metrics.RATE_WAIT.labels(name)
        self._arrival = 0.0

    async def turn(self) -> None:
        """Wait for the next turn."""
        if self._rate is not None and (wait := await self.take(self._rate)) > 0:
            await asyncio.sleep(wait)

    async def take(self, rate: float) -> float:
        """Take the next turn, and say how many seconds to wait for it."""
        wait = await self._accelerator.turn(self._name, rate, self._burst)
        if wait is None:
            wait = self._own_turn(rate)
        self._waited.observe(wait)
        return wait

    def _own_turn(self, rate: float) -> float:
        now = asyncio.get_running_loop().time()
        arrival = max(self._arrival, now)
        self._arrival = arrival + 1 / rate
        return max(0.0, arrival - self._burst / rate - now)
