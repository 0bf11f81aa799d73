"""What a process knows of the providers' circuits: read about once a second, changed by what it sees itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from uuid import UUID

from taskflux.providers.provider import Checkable
from taskflux.store.accelerator import Accelerator
from taskflux.store.errors import StoreError
from taskflux.store.publishing import Circuit, Circuits
from taskflux.tasks.circuit import OPEN_AFTER, RAMP_SECONDS
from taskflux.tasks.errors import ProviderError, attribute, text_of
from taskflux.telemetry import metrics

log = logging.getLogger(__name__)

REFRESH: Final = 1.0
"""Seconds between two looks at the circuits."""


class CircuitWatch:
    """All circuits, as they stood a moment ago."""

    def __init__(self, circuits: Circuits) -> None:
        self.store = circuits
        self.known: Mapping[str, Circuit] = {}

    async def refresh(self) -> None:
        """Read them again.

        Raises:
            StoreError: they could not be read; what was known stays.
        """
        self.known = await self.store.all()

    async def keep_fresh(self) -> None:
        """Refresh until cancelled; while PostgreSQL is away, what was known is kept."""
        while True:
            try:
                await self.refresh()
            except StoreError as error:
                log.debug("circuits could not be read", extra={"error": str(error)})
            await asyncio.sleep(REFRESH)

    def flowing(self, provider: str | None) -> bool:
        """Whether work for `provider` may be published without limit."""
        circuit = self.known.get(provider) if provider else None
        if circuit is None:
            return True
        return not circuit.open and (circuit.closed_for is None or circuit.closed_for >= RAMP_SECONDS)


class Gate:
    """The way from one worker to its provider, and the worker's judgement of it.

    Tasks pass at the provider's rate; failures of several of them open its circuit, a success closes it. Without a
    provider everything passes. `clock` says monotonic seconds.
    """

    def __init__(
        self,
        watch: CircuitWatch,
        provider: str | None = None,
        client: object | None = None,
        limiter: Limiter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self._watch = watch
        self._provider = provider
        self._limiter = limiter
        self._clock = clock
        self._failed: set[UUID] = set()  # tasks, since the last success
        self._last_success = float("-inf")

    @property
    def open(self) -> bool:
        """Whether the provider's circuit is open, as it stood a moment ago: tasks are handed back instead of run."""
        circuit = self._watch.known.get(self._provider) if self._provider else None
        return circuit is not None and circuit.open

    async def refusal(self, *, probe: bool) -> str | None:
        """Why the provider may not be asked now; None once its rate limit allows it.

        `probe`: where the circuit is open, this task is to find out whether the provider is back, by the provider's
        own check where there is one.
        """
        if self.open:
            if not probe:
                return "the provider's circuit is open"
            if isinstance(self.client, Checkable):
                try:
                    await self.client.check()
                except ProviderError as error:
                    return f"the provider was probed: {text_of(attribute(error, 'reason'))}"
                await self.served()
        if self._limiter is not None:
            await self._limiter.turn()
        return None

    def succeeded_since(self, then: float) -> bool:
        """Whether the provider served any task after monotonic time `then`."""
        return self._last_success > then

    async def served(self) -> None:
        """The provider did its work, or refused a task for the task's own fault: it is there."""
        self._failed.clear()
        self._last_success = self._clock()
        if self._provider is not None and self.open:
            await self._change(self._watch.store.close(self._provider), "the circuit is closed")

    async def failed(self, task: UUID, error: ProviderError) -> None:
        """The provider failed for `task`: several different ones open the circuit."""
        if self._provider is None:
            return
        self._failed.add(task)
        if len(self._failed) < OPEN_AFTER or self.open:
            return
        opening = self._watch.store.open(self._provider, error.error_class, error.reason)
        await self._change(opening, "the circuit is open", error.error_class)

    async def _change(self, change: Awaitable[bool], message: str, error_class: str = "") -> None:
        try:
            if await change:
                log.warning(message, extra={"provider": self._provider, "error_class": error_class})
            await self._watch.refresh()
        except StoreError as error:
            # The next failure or success says it again.
            log.warning("the circuit could not be changed", extra={"provider": self._provider, "error": str(error)})


class Limiter:
    """Gives out turns at `rate` a second.

    A tenth of a second's worth may go at once, so that a limit of 500 a second does not wait 500 times.
    """

    def __init__(self, name: str, rate: float, accelerator: Accelerator) -> None:
        self._name = name
        self._rate = rate
        self._burst = max(0.0, rate / 10 - 1)  # turns beside the one that is due
        self._accelerator = accelerator
        self._waited = metrics.RATE_WAIT.labels(name)
        self._arrival = 0.0

    async def turn(self) -> None:
        """Wait for the next turn."""
        if (wait := await self.take()) > 0:
            await asyncio.sleep(wait)

    async def take(self) -> float:
        """Take the next turn, and say how many seconds to wait for it."""
        wait = await self._accelerator.turn(self._name, self._rate, self._burst)
        if wait is None:
            wait = self._own_turn()
        self._waited.observe(wait)
        return wait

    def _own_turn(self) -> float:
        now = asyncio.get_running_loop().time()
        arrival = max(self._arrival, now)
        self._arrival = arrival + 1 / self._rate
        return max(0.0, arrival - self._burst / self._rate - now)
