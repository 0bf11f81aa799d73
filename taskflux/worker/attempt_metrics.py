"""What every attempt counts, as far as it can for a whole batch at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from taskflux.store.claims import Settled, Settlement
from taskflux.tasks.states import Event
from taskflux.telemetry import metrics, tracing

if TYPE_CHECKING:
    from taskflux.worker.executor import Executor

_SUCCEEDED: Final = Event.SUCCEEDED  # looked up once: it is compared with every outcome


class AttemptMetrics:
    """One type's series, all of them there from the start, looked up once."""

    def __init__(self, task_type: str) -> None:
        self._type = task_type
        self._processing = metrics.PROCESSING.labels(task_type)
        self._seconds: list[float] = []
        self._end_to_end = metrics.END_TO_END.labels(task_type)
        self._outcomes = {event: metrics.ATTEMPTS.labels(task_type, event.value) for event in metrics.SETTLES}
        self._errors = {name: metrics.ERRORS.labels(task_type, name) for name in metrics.TASK_ERRORS}
        self._repeats = metrics.REPEATS.labels(task_type)
        self._late = {
            counted: metrics.LATE_SETTLES.labels(task_type, str(counted).lower()) for counted in (True, False)
        }

    def show(self, executor: Executor) -> None:
        """Count what `executor` has in flight, whenever somebody looks."""
        metrics.IN_FLIGHT.labels(self._type).follow(executor, lambda executor: executor.in_flight)
        metrics.CONCURRENCY.labels(self._type).set(executor.concurrency)

    def processed(self, seconds: float, recorded: str | None) -> None:
        """The handler's own work is over, in an attempt of that traceparent, where it is recorded.

        It is counted with the outcome, which follows: once for a batch.
        """
        if recorded is None:
            self._seconds.append(seconds)
        else:
            self._processing.observe(seconds, tracing.exemplar(recorded))

    def error(self, error_class: str) -> None:
        """An attempt failed."""
        found = self._errors.get(error_class)
        (found or metrics.ERRORS.labels(self._type, metrics.error_class(error_class))).inc()

    def settled(self, batch: Iterable[tuple[Settlement, Settled]]) -> None:
        """These outcomes were written by one statement."""
        seconds, self._seconds = self._seconds, []
        self._processing.observe_all(seconds)
        succeeded, others, ages = 0, Counter[Event](), []
        for settlement, settled in batch:
            decision, recorded = settlement.decision, settlement.span
            event = decision.event
            if event is _SUCCEEDED:
                succeeded += 1
                if settled.written and recorded is None:
                    ages.append(settled.age)
                elif settled.written:
                    self._end_to_end.observe(settled.age, tracing.exemplar(recorded))
            else:
                others[event] += 1
                if event is Event.RETRY and decision.error_class == "Ambiguous":
                    self._repeats.inc()
            if settled.late or not settled.written:
                self._late[settled.written].inc()
        self._end_to_end.observe_all(ages)
        self._outcomes[_SUCCEEDED].inc(succeeded)
        for event, count in others.items():
            self._outcomes[event].inc(count)
