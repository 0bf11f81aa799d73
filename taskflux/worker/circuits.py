"""The providers' circuit breakers in a process: read about once a second, changed by its own observations."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar
from uuid import UUID

from taskflux.providers.provider import Checkable
from taskflux.store.accelerator import Accelerator
from taskflux.store.errors import StoreError
from taskflux.store.publishing import Circuit, Circuits
from taskflux.tasks.errors import Misconfigured, ProviderError, attribute, text_of
from taskflux.tasks.policy import OPEN_AFTER, RAMP_SECONDS
from taskflux.telemetry import metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

REFRESH: Final = 1.0
"""Seconds between two reads of the circuits."""

REMEMBERED: Final = 10_000
"""Failed tasks of which a worker remembers when their provider failed for them."""


class CircuitWatch:
    """All circuits, as of the last refresh. `clock` returns monotonic seconds."""

    def __init__(self, circuits: Circuits, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = circuits
        self.known: Mapping[str, Circuit] = {}
        self._clock = clock
        self._read_at = float("-inf")

    async def refresh(self) -> None:
        """Read them again.

        Raises:
            StoreError: they could not be read; what was known stays.
        """
        asked_at = self._clock()
        self.known = await self.store.all()
        self._read_at = asked_at

    async def keep_fresh(self) -> None:
        """Refresh until cancelled; while PostgreSQL is unavailable, keep the last known state."""
        while True:
            try:
                await self.refresh()
            except StoreError as error:
                log.debug("circuits could not be read", extra={"error": str(error)})
            await asyncio.sleep(REFRESH)

    def open(self, provider: str | None) -> bool:
        """Whether the circuit of `provider` is open."""
        circuit = self.known.get(provider) if provider else None
        return circuit is not None and circuit.open

    def flowing(self, provider: str | None) -> bool:
        """Whether work for `provider` may be published without limit."""
        circuit = self.known.get(provider) if provider else None
        if circuit is None:
            return True
        return not circuit.open and (circuit.closed_for is None or circuit.closed_for >= RAMP_SECONDS)

    def served_at(self, provider: str | None) -> float:
        """When a served task of `provider` last closed its circuit, in any worker; -inf: never."""
        circuit = self.known.get(provider) if provider else None
        if circuit is None or circuit.served_for is None:
            return float("-inf")
        return self._read_at - circuit.served_for


class Gate:
    """Controls the calls of one worker to its provider, and judges whether the provider works.

    Tasks pass at the provider's rate; failures of several of them open its circuit, a success closes it. Without a
    provider everything passes. `clock` returns monotonic seconds.
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
        self.passes_all: Final = provider is None and limiter is None
        """Whether there is nothing to ask, and nothing to learn."""
        self._watch = watch
        self._provider = provider
        self._limiter = limiter
        self._clock = clock
        self._failed: set[UUID] = set()  # tasks, since the last success
        self._failed_at: OrderedDict[UUID, float] = OrderedDict()  # when the provider last failed for a task
        self._served_at = float("-inf")

    @property
    def open(self) -> bool:
        """Whether the provider's circuit was open at the last refresh: tasks are then released instead of run."""
        return self._watch.open(self._provider)

    async def refusal(self, *, probe: bool) -> str | None:
        """Why the provider may not be called now; None once its rate limit allows it.

        `probe`: if the circuit is open, this task finds out whether the provider is available again, by the provider's
        own check if there is one.
        """
        if self.open:
            if not probe:
                return "the provider's circuit is open"
            if isinstance(self.client, Checkable):
                try:
                    await self.client.check()
                except ProviderError as error:
                    return f"the provider was probed: {text_of(attribute(error, 'reason'))}"
                await self._close(served=False)
        if self._limiter is not None:
            await self._limiter.turn()
        return None

    async def served(self, task: UUID) -> None:
        """The provider served `task`, or refused it because of the task itself: it is available."""
        if self._provider is None:
            return
        self._failed_at.pop(task, None)
        self._served_at = self._clock()
        await self._close(served=True)

    async def failed(self, task: UUID, error: ProviderError, since: float, *, probe: bool = False) -> bool:
        """The provider failed for `task`, whose attempt began at monotonic time `since`; whether it serves others.

        It does if it has served any other since it last failed for this one, or since `since` if it never has. Then
        this task is the cause. Otherwise, failures of several tasks open the circuit, and that of a `probe` is noted
        there.
        """
        if self._provider is None:
            return False
        then = self._failed_at.pop(task, since)
        self._failed_at[task] = self._clock()
        if len(self._failed_at) > REMEMBERED:
            self._failed_at.popitem(last=False)
        serves_others = max(self._served_at, self._watch.served_at(self._provider)) > then
        if not serves_others:
            self._failed.add(task)
        store, name = self._watch.store, self._provider
        if self.open:
            if probe:
                refused = isinstance(error, Misconfigured)
                await self._apply(store.probe_failed(name, error.error_class, error.reason, refused=refused))
        elif len(self._failed) >= OPEN_AFTER:
            opening = store.open(name, error.error_class, error.reason)
            await self._change(opening, "the circuit is open", error.error_class)
        return serves_others

    async def _close(self, *, served: bool) -> None:
        self._failed.clear()
        if self._provider is not None and self.open:
            closing = self._watch.store.close(self._provider, served=served)
            await self._change(closing, "the circuit is closed")

    async def _change(self, change: Awaitable[bool], message: str, error_class: str = "") -> None:
        if await self._apply(change):
            log.warning(message, extra={"provider": self._provider, "error_class": error_class})

    async def _apply(self, change: Awaitable[T]) -> T | None:
        """Change the circuit's row, and read it again."""
        try:
            changed = await change
            await self._watch.refresh()
        except StoreError as error:
            # The next failure or success repeats it.
            log.warning("the circuit could not be changed", extra={"provider": self._provider, "error": str(error)})
            return None
        return changed


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
