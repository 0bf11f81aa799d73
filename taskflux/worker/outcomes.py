"""What was decided of attempts: written in groups, counted, and told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from taskflux.store.claims import Claim, Claims, Settled, Settlement
from taskflux.store.errors import RefusedData, StoreError
from taskflux.store.group_commit import GroupCommit
from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event
from taskflux.telemetry import logs, message_spans
from taskflux.worker.attempt_metrics import AttemptMetrics

log = logging.getLogger(__name__)

BATCH: Final = 500
AGAIN: Final = 1.0
"""Seconds before an outcome that could not be written is written again."""


class Outcomes:
    """Those of one handler's attempts."""

    def __init__(
        self, task_type: str, claims: Claims, source: message_spans.Destination, counted: AttemptMetrics
    ) -> None:
        self._type = task_type
        self._claims = claims
        self._source = source
        self._counted = counted
        self._group: GroupCommit[Settlement, Settled] = GroupCommit(
            self._write_batch,
            identity=lambda settlement: settlement.id,
            max_items=BATCH,
            statement="settle",
        )
        self.under_way = 0
        """Outcomes that are not written yet."""

    async def write(self, claim: Claim, decision: Decision, recorded: str | None) -> None:
        """Write what was decided of a claim, however long that takes, and tell it.

        Unwritten, its task would run for as long as this worker lives. `recorded` is the traceparent of the attempt's
        span, where there is one.
        """
        self.under_way += 1
        try:
            await self._write_surely(claim, _storable(decision), recorded)
        finally:
            self.under_way -= 1
        self._tell(claim, decision)

    async def _write_surely(self, claim: Claim, decision: Decision, recorded: str | None) -> None:
        while True:
            try:
                await self._group.submit(Settlement(claim.id, claim.version, decision, recorded))
                return
            except StoreError as error:
                log.error("an outcome could not be written yet", extra={"error_class": type(error).__name__})
                if isinstance(error, RefusedData):
                    decision = replace(decision, delay=0.0, result=None, reason="what it said cannot be stored")
            await asyncio.sleep(AGAIN)

    async def _write_batch(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        with message_spans.settling(self._source, (each.span for each in settlements)):
            settled = await self._claims.settle(settlements)
        self._counted.settled(zip(settlements, settled, strict=True))
        return settled

    def _tell(self, claim: Claim, decision: Decision) -> None:
        level, event = logging.WARNING, decision.event.value
        extra = {"type": self._type, "attempt": claim.attempt, "error_class": decision.error_class}
        if decision.event not in (Event.DIED, Event.HELD):
            level, omitted = logging.INFO, logs.outcomes.take(event, asyncio.get_running_loop().time())
            if omitted is None:
                return
            if omitted:
                extra["omitted"] = omitted
        log.log(level, event, extra=extra)


def _storable(decision: Decision) -> Decision:
    """`decision`, without a result (or progress) that is no mapping at all: the store can make sense of all others."""
    if decision.result is None or isinstance(decision.result, Mapping):
        return decision
    log.error("a result is no mapping and is not kept")
    return replace(decision, result=None)
