"""What was decided of attempts: written, however long that takes, and told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from taskflux.store.claims import Claim, Claims, Settlement
from taskflux.store.errors import RefusedData, StoreError
from taskflux.tasks.states import Event
from taskflux.telemetry import logs, metrics

log = logging.getLogger(__name__)

AGAIN: Final = 1.0
"""Seconds before an outcome that could not be written is written again."""
NOT_STORABLE: Final = "what it said cannot be stored"


class Outcomes:
    """Those of one worker's attempts."""

    def __init__(self, claims: Claims) -> None:
        self.under_way = 0
        """Outcomes that are not written yet."""
        self._claims = claims
        self._type = task_type = claims.worker.type
        metrics.ATTEMPTS.zeros(task_type, metrics.SETTLES)
        metrics.PROCESSING.zeros(task_type)
        metrics.END_TO_END.zeros(task_type)
        metrics.REPEATS.zeros(task_type)
        metrics.LATE_SETTLES.zeros(task_type)

    async def write(self, claim: Claim, settlement: Settlement) -> None:
        """Write how a claim ended, however long that takes, and tell it.

        Unwritten, its task would run for as long as this worker lives.
        """
        decision = settlement.decision
        if decision.result is not None and not isinstance(decision.result, Mapping):
            log.error("a result is no mapping and is not kept")  # of all others the store can make sense
            decision = replace(decision, result=None)
        self.under_way += 1
        try:
            while True:
                try:
                    await self._claims.settle(settlement._replace(decision=decision))
                    break
                except StoreError as error:
                    log.error("an outcome could not be written yet", extra={"error_class": type(error).__name__})
                    if isinstance(error, RefusedData) and decision.reason != NOT_STORABLE:
                        decision = replace(decision, delay=0.0, result=None, reason=NOT_STORABLE)
                        continue
                await asyncio.sleep(AGAIN)
        finally:
            self.under_way -= 1
        event = decision.event.value
        about = {"type": self._type, "attempt": claim.attempt, "error_class": decision.error_class}
        if decision.event in (Event.DIED, Event.HELD):
            log.warning(event, extra=about)
        else:
            logs.outcomes.log(log, logging.INFO, event, event, about)
