"""Ends expired leases, and frees their claims: the tasks run again at a bounded rate, or are held."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

from taskflux.store.errors import StoreError
from taskflux.store.upkeep import Beat, Upkeep
from taskflux.tasks.decision import LOSSES_ALONE
from taskflux.telemetry import metrics
from taskflux.upkeep.auditor import Pace

log = logging.getLogger(__name__)

LOOK: Final = 1.0
"""Seconds between two readings of the workers' beats."""
GAP: Final = 5 * LOOK
"""After a gap of this many seconds between two readings, every lease is counted from the start again."""
SWEEP: Final = 500
"""Claims at which one statement stops; all claims of one worker are freed by the same statement."""
ROUNDS: Final = 10
"""Statements that free claims between two readings, at most."""


class LeaseSweep:
    """Ends the leases of silent workers, and frees the claims of every lease that was ended.

    A lease of `seconds` has expired once the same beat was seen for that long by `clock` (monotonic seconds), without a
    gap between readings. Wall clocks are never compared, so a clock that is set ends no lease.

    Whatever may have kept workers from beating, or us from seeing it, starts the count again: a start of PostgreSQL, a
    failed statement, a gap between two readings, a new leadership. A worker counts from before its beat is written, we
    from after reading it, so a worker knows that its lease has expired before we end it.

    Several of these at once do no harm: each change compares and sets.
    """

    def __init__(
        self,
        upkeep: Upkeep,
        seconds: float,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        losses_alone: int = LOSSES_ALONE,
    ) -> None:
        self._upkeep = upkeep
        self._seconds = seconds
        self._pace = Pace(rate)
        self._clock = clock
        self._losses_alone = losses_alone
        self._seen: dict[UUID, tuple[Beat, float]] = {}  # each worker's last beat, and since when it has been the same
        self._looked = float("-inf")

    async def keep_sweeping(self) -> None:
        """Sweep until cancelled. Raises StoreError: sweep again when PostgreSQL is available."""
        self.start_again()
        while True:
            await self.tick()
            await asyncio.sleep(LOOK)

    def start_again(self) -> None:
        """Give every worker a whole lease from the next reading on."""
        self._seen.clear()

    async def tick(self) -> None:
        """Read the beats, end the leases that have expired, and free the claims of ended leases.

        Raises:
            StoreError: every lease is counted from the start again.
        """
        try:
            await self._end_silent()
            await self._free_claims()
        except StoreError:
            self.start_again()
            raise

    async def _end_silent(self) -> None:
        beats = await self._upkeep.beats()
        now = self._clock()  # after the answer: the beats in it were written before
        if now - self._looked > GAP:
            self.start_again()
        self._looked = now
        self._seen = {
            worker: (beat, since if beat == before else now)
            for worker, beat in beats.items()
            for before, since in [self._seen.get(worker, (None, now))]
        }
        silent = {worker: beat for worker, (beat, since) in self._seen.items() if now - since >= self._seconds}
        overdue = [worker for worker in silent if now - self._seen[worker][1] >= 2 * self._seconds]
        for row in await self._upkeep.end_silent(silent, overdue):
            log.warning("a lease expired", extra={"worker": row["label"], "in_flight": row["in_flight"]})

    async def _free_claims(self) -> None:
        for _ in range(ROUNDS):
            now = self._clock()
            start = self._pace.start(now)
            swept = await self._upkeep.sweep(SWEEP, self._pace.rate, start, losses_alone=self._losses_alone)
            self._pace.took(sum(swept.tasks.values()), now)
            for (task_type, state), tasks in swept.tasks.items():
                metrics.LEASES_SWEPT.labels(task_type, state).inc(tasks)
                if state == "scheduled":
                    metrics.REPEATS.labels(task_type).inc(tasks)
                log.warning("tasks of a lost worker", extra={"type": task_type, "state": state, "tasks": tasks})
            if swept.looked_at < SWEEP:
                return
