"""The outcomes of attempts: written, however long that takes, and logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from taskflux.store.claims import Claim, Claims, Settled, Settlement
from taskflux.store.errors import RefusedData
from taskflux.tasks.decision import Decision
from taskflux.tasks.errors import class_name
from taskflux.tasks.states import Event
from taskflux.telemetry import logs, metrics

log = logging.getLogger(__name__)

AGAIN: Final = 1.0
"""Seconds before an outcome that could not be written is written again."""
NOT_STORABLE: Final = "what it returned or raised cannot be stored"


class Outcomes:
    """The outcomes of one worker's attempts."""

    def __init__(self, claims: Claims) -> None:
        self.under_way = 0
        """Outcomes that are not written yet."""
        self._given_up = False
        self._claims = claims
        self._type = task_type = claims.worker.type
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
        self._submit(claim, settlement, written)

    def give_up(self) -> None:
        """Write no more: the process ends, and so does its lease."""
        self._given_up = True
        self._claims.give_up()

    def _submit(self, claim: Claim, settlement: Settlement, written: Callable[[], None]) -> None:
        answer = self._claims.settle(settlement)
        answer.add_done_callback(partial(self._answered, claim, settlement, written))

    def _answered(
        self, claim: Claim, settlement: Settlement, written: Callable[[], None], answer: asyncio.Future[Settled]
    ) -> None:
        error = answer.exception()
        if error is None:
            self.under_way -= 1
            written()
            self._log(claim, settlement.decision)
            return
        if self._given_up:
            return
        log.error("an outcome could not be written yet", extra={"error_class": class_name(error)})
        if isinstance(error, RefusedData) and settlement.decision.reason != NOT_STORABLE:
            reduced = replace(settlement.decision, delay=0.0, result=None, reason=NOT_STORABLE)
            again = Settlement(claim.id, claim.version, reduced, settlement.span, settlement.seconds)
            self._submit(claim, again, written)
        else:
            answer.get_loop().call_later(AGAIN, self._submit, claim, settlement, written)

    def _log(self, claim: Claim, decision: Decision) -> None:
        event = decision.event.value
        about = {"type": self._type, "attempt": claim.attempt, "error_class": decision.error_class}
        if decision.event in (Event.DIED, Event.HELD):
            log.warning(event, extra=about | _reason(claim, decision))
        else:
            logs.outcomes.log(log, logging.INFO, event, event, about, partial(_reason, claim, decision))


def _reason(claim: Claim, decision: Decision) -> dict[str, str]:
    """The reason as logged; none if the payload was not read with the claim, so that it cannot be scrubbed."""
    if decision.reason is None or claim.payload is None:
        return {}
    reason = logs.reason(decision.reason, (claim.payload, claim.metadata, claim.progress))
    return {} if reason is None else {"reason": reason}
