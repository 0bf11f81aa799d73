"""Claims whose worker is lost: freed under a lease that has expired, to run again at a bounded rate or to be held."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from taskflux.store.upkeep import Upkeep
from taskflux.telemetry import metrics
from taskflux.upkeep.auditor import Pace

log = logging.getLogger(__name__)

SWEEP: Final = 500
"""Claims that one statement frees at most."""


class LeaseSweep:
    """Frees the claims of lost workers.

    A lease of `seconds` counts as expired only when its worker had every chance to renew it: somebody has looked after
    leases, and PostgreSQL has been up, without interruption for one whole lease. One that was ended by its supervisor
    needs no such patience.
    """

    def __init__(
        self, upkeep: Upkeep, seconds: float, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._upkeep = upkeep
        self._seconds = seconds
        self._pace = Pace(rate)
        self._clock = clock

    async def tick(self, led_for: float) -> None:
        """Free all that is lost by now; `led_for` is for how long, in seconds, we have looked without interruption."""
        patient = led_for >= self._seconds and await self._upkeep.server_uptime() >= self._seconds
        lease = self._seconds if patient else None
        looked_at = SWEEP
        while looked_at == SWEEP:
            now = self._clock()
            swept = await self._upkeep.sweep(lease, SWEEP, self._pace.rate, self._pace.start(now))
            self._pace.took(sum(swept.tasks.values()), now)
            for (task_type, state), tasks in swept.tasks.items():
                metrics.LEASES_SWEPT.labels(task_type, state).inc(tasks)
                if state == "scheduled":
                    metrics.REPEATS.labels(task_type).inc(tasks)
                log.warning("tasks of a lost worker", extra={"type": task_type, "state": state, "tasks": tasks})
            looked_at = swept.looked_at
