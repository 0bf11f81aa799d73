"""What was decided of attempts: written in groups, counted, and told."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from taskflux.store.claims import Claim, Claims, Settled, Settlement
from taskflux.store.errors import RefusedData, StoreError
from taskflux.store.group_commit import GroupCommit
from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event
from taskflux.telemetry import logs, metrics, tracing
from taskflux.telemetry.tracing import UNTRACED, Destination

log = logging.getLogger(__name__)

BATCH: Final = 500
AGAIN: Final = 1.0
"""Seconds before an outcome that could not be written is written again."""
NOT_STORABLE: Final = "what it said cannot be stored"
_SUCCEEDED: Final = Event.SUCCEEDED  # looked up once: it is compared with every outcome


class Outcomes:
    """Those of one worker's attempts, whose records stood in `source`."""

    def __init__(self, task_type: str, claims: Claims, source: Destination) -> None:
        self.source = source
        self.under_way = 0
        """Outcomes that are not written yet."""
        self._type = task_type
        self._claims = claims
        self._group: GroupCommit[Settlement, Settled] = GroupCommit(
            self._settle,
            max_items=BATCH,
            statement="settle",
        )
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
                    await self._group.submit(settlement._replace(decision=decision), claim.id)
                    break
                except StoreError as error:
                    log.error("an outcome could not be written yet", extra={"error_class": type(error).__name__})
                    if isinstance(error, RefusedData) and decision.reason != NOT_STORABLE:
                        decision = replace(decision, delay=0.0, result=None, reason=NOT_STORABLE)
                        continue
                await asyncio.sleep(AGAIN)
        finally:
            self.under_way -= 1
        self._tell(claim, decision)

    async def _settle(self, batch: Sequence[Settlement]) -> Sequence[Settled]:
        with tracing.batch(self.source.settle, [each.span for each in batch]) if tracing.on else UNTRACED:
            settled = await self._claims.settle(batch)
        self._count(batch, settled)
        return settled

    def _count(self, batch: Sequence[Settlement], settled: Sequence[Settled]) -> None:
        """One statement has written these: they are counted together, as far as they have no span to point to."""
        processing, end_to_end = metrics.PROCESSING.labels(self._type), metrics.END_TO_END.labels(self._type)
        took: list[float] = []
        ages: list[float] = []
        others: Counter[Event] = Counter()
        for (_, _, decision, span, seconds), (written, late, age) in zip(batch, settled, strict=True):
            if seconds is not None:
                if span is None:
                    took.append(seconds)
                else:
                    processing.observe(seconds, tracing.exemplar(span))
            if decision.event is not _SUCCEEDED:
                others[decision.event] += 1
                if decision.event is Event.RETRY and decision.error_class == "Ambiguous":
                    metrics.REPEATS.labels(self._type).inc()
            elif written and span is None:
                ages.append(age)
            elif written:
                end_to_end.observe(age, tracing.exemplar(span))
            if late or not written:
                metrics.LATE_SETTLES.labels(self._type, str(written).lower()).inc()
        processing.observe_all(took)
        end_to_end.observe_all(ages)
        metrics.ATTEMPTS.labels(self._type, _SUCCEEDED.value).inc(len(batch) - others.total())
        for event, count in others.items():
            metrics.ATTEMPTS.labels(self._type, event.value).inc(count)

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
