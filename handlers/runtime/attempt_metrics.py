"""What every attempt counts."""

from __future__ import annotations

from typing import Final

from handlers.runtime import metrics
from handlers.store.claims import Settled
from handlers.tasks.decision import Decision
from handlers.tasks.states import Event

SETTLES: Final = (Event.SUCCEEDED, Event.RETRY, Event.HANDED_BACK, Event.DIED, Event.HELD)


class AttemptMetrics:
    """The labelled children that every attempt touches, looked up once."""

    def __init__(self, task_type: str) -> None:
        self._type = task_type
        self.in_flight = metrics.IN_FLIGHT.labels(task_type)
        self.processing = metrics.PROCESSING.labels(task_type)
        self._end_to_end = metrics.END_TO_END.labels(task_type)
        self._outcomes = {event: metrics.ATTEMPTS.labels(task_type, event.value) for event in SETTLES}

    def error(self, error_class: str) -> None:
        metrics.ERRORS.labels(self._type, error_class).inc()

    def settled(self, decision: Decision, settled: Settled) -> None:
        self._outcomes[decision.event].inc()
        if decision.event is Event.SUCCEEDED and settled.written:
            self._end_to_end.observe(settled.age)
        if decision.error_class == "Ambiguous" and decision.event is Event.RETRY:
            metrics.REPEATS.labels(self._type).inc()
        if settled.late or not settled.written:
            metrics.LATE_SETTLES.labels(self._type, str(settled.written).lower()).inc()
