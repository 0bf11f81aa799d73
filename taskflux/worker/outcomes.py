"""The outcomes of attempts: written, however long that takes, and logged."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

from taskflux.store.claims import SETTLE_BATCH, Claim, Claims, Settlement
from taskflux.store.errors import RefusedData, SchemaTooOld, StoreBusy, StoreError, StoreUnavailable, until_available
from taskflux.tasks.decision import Decision
from taskflux.tasks.errors import class_name
from taskflux.tasks.states import Event
from taskflux.telemetry import logs, metrics

log = logging.getLogger(__name__)

AGAIN: Final = 1.0
"""Seconds before an outcome that could not be written is written again."""
_RETRY: Final = (StoreBusy, StoreUnavailable, SchemaTooOld)
_ALWAYS: Final = (Event.DIED, Event.HELD)
"""Outcomes whose line is never omitted."""
NOT_STORABLE: Final = "what it returned or raised cannot be stored"


class Outcome(NamedTuple):
    """How a claim ended; `context` is that of its attempt, and `written` is called once it is written."""

    claim: Claim
    settlement: Settlement
    written: Callable[[], None]
    context: Context


class Outcomes:
    """The outcomes of one worker's attempts: those that come while a statement runs share the next one.

    A task per statement writes them, and nothing is created per outcome to wait for it.
    """

    def __init__(self, claims: Claims) -> None:
        self.under_way = 0
        """Outcomes that are not written yet."""
        self._given_up = False
        self._claims = claims
        self._waiting: deque[Outcome] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._type = task_type = claims.worker.type
        self._sizes = metrics.BATCH.labels("settle")
        metrics.ATTEMPTS.zeros(task_type, metrics.SETTLES)
        metrics.PROCESSING.zeros(task_type)
        metrics.END_TO_END.zeros(task_type)
        metrics.REPEATS.zeros(task_type)
        metrics.LATE_SETTLES.zeros(task_type)

    def write(self, claim: Claim, settlement: Settlement, written: Callable[[], None] = lambda: None) -> None:
        """Write how a claim ended, however long that takes, log it, and call `written`.

        Without it, the task would stay `running` for as long as this worker lives. So it is not part of the attempt's
        asyncio task, which a handler can cancel at any time.
        """
        decision = settlement.decision
        if decision.result is not None and settlement.result is None:
            log.error("a result is not a mapping and is not stored")  # the store accepts any mapping
        self.under_way += 1
        self._submit(Outcome(claim, settlement, written, copy_context()))

    def give_up(self) -> None:
        """Write no more: the process ends, and so does its lease."""
        self._given_up = True
        if self._writer is not None:
            self._writer.cancel()

    def _submit(self, outcome: Outcome) -> None:
        self._waiting.append(outcome)
        if self._writer is None:  # in a context of its own: it writes those of many attempts
            self._writer = asyncio.create_task(self._write_waiting(), context=Context())

    async def _write_waiting(self) -> None:
        try:
            while self._waiting:
                batch = self._next()
                try:
                    await self._write(batch)
                except BaseException as error:  # it was cancelled
                    self._failed([*batch, *self._waiting], error)
                    self._waiting.clear()
                    raise
        finally:
            self._writer = None

    def _next(self) -> list[Outcome]:
        """The next batch: of two outcomes of a task, whose lease was lost meanwhile, the second waits."""
        batch: dict[UUID, Outcome] = {}
        second = []
        while self._waiting and len(batch) < SETTLE_BATCH:
            outcome = self._waiting.popleft()
            if batch.setdefault(outcome.settlement.id, outcome) is not outcome:
                second.append(outcome)
        self._waiting.extendleft(reversed(second))
        return list(batch.values())

    async def _write(self, batch: Sequence[Outcome]) -> None:
        settlements = [outcome.settlement for outcome in batch]
        try:
            await until_available(lambda: self._claims.settle_all(settlements), retry=_RETRY)
        except Exception as error:
            known = isinstance(error, StoreError)
            if len(batch) > 1 and (not known or isinstance(error, RefusedData)):
                # Halved until only the bad one fails.
                middle = len(batch) // 2
                await self._write(batch[:middle])
                await self._write(batch[middle:])
                return
            if not known:
                ids = [str(outcome.claim.id) for outcome in batch]
                log.error("outcomes cannot be written", exc_info=error, extra={"task_ids": ids})
            self._failed(batch, error)
            return
        self._sizes.observe(len(batch))
        self.under_way -= len(batch)
        for outcome in batch:
            outcome.written()
            self._log(outcome)

    def _failed(self, batch: Iterable[Outcome], error: BaseException) -> None:
        if self._given_up:
            return
        refused = isinstance(error, RefusedData)
        told = partial(log.error, "an outcome could not be written yet", extra={"error_class": class_name(error)})
        for outcome in batch:
            claim, settlement = outcome.claim, outcome.settlement
            outcome.context.run(told)
            if refused and settlement.decision.reason != NOT_STORABLE:
                reduced = replace(settlement.decision, delay=0.0, result=None, reason=NOT_STORABLE)
                again = Settlement(claim.id, claim.version, reduced, settlement.span, settlement.seconds)
                self._submit(outcome._replace(settlement=again))
            else:
                asyncio.get_running_loop().call_later(AGAIN, self._submit, outcome)

    def _log(self, outcome: Outcome) -> None:
        event = outcome.settlement.decision.event
        if event in _ALWAYS or logs.outcomes.admits(log, logging.INFO, event):
            outcome.context.run(self._tell, outcome.claim, outcome.settlement.decision)

    def _tell(self, claim: Claim, decision: Decision) -> None:
        event = decision.event.value
        about = {"type": self._type, "attempt": claim.attempt, "error_class": decision.error_class}
        if decision.event in _ALWAYS:
            log.warning(event, extra=about | _reason(claim, decision))
        else:
            logs.outcomes.write(log, logging.INFO, event, event, about | _reason(claim, decision))


def _reason(claim: Claim, decision: Decision) -> dict[str, str]:
    """The reason as logged; none if the payload was not read with the claim, so that it cannot be scrubbed."""
    if decision.reason is None or claim.payload is None:
        return {}
    reason = logs.reason(decision.reason, (claim.payload, claim.metadata, claim.progress))
    return {} if reason is None else {"reason": reason}
