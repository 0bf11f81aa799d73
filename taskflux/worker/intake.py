"""Accepting a task: durable in PostgreSQL first, published after."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextvars import Context
from functools import partial
from itertools import chain
from typing import Final

from taskflux.store.errors import StoreError
from taskflux.store.publishing import PendingPublish
from taskflux.store.tasks import Tasks
from taskflux.tasks.model import Accepted, KeyReused, Submission
from taskflux.worker.circuits import CircuitWatch
from taskflux.worker.publisher import Publisher

log = logging.getLogger(__name__)

PUBLISH_BATCH: Final = 1000
MAX_PENDING: Final = 20_000
"""Accepted tasks that wait here for Kafka; beyond, publishing is left to the relay."""


class Intake:
    """Makes submissions durable in groups, and publishes those that are due now, after their answers.

    While Kafka is unreachable, a circuit is open or ramping up, or too much is pending, the relay publishes instead.
    """

    def __init__(self, tasks: Tasks, publisher: Publisher, circuits: CircuitWatch, grace: float) -> None:
        self._tasks = tasks
        self._publisher = publisher
        self._circuits = circuits
        self._pending: list[PendingPublish] = []
        self._publishing: asyncio.Task[None] | None = None
        self._grace = grace

    def accept(self, submission: Submission) -> asyncio.Future[Accepted | KeyReused]:
        """Make `submission` durable.

        Raises:
            StoreUnavailable: PostgreSQL is unavailable; nothing is promised.
            RefusedData: a value cannot be stored.
        """
        answer = self._tasks.accept(submission, self._grace if self._ours(submission.provider) else 0.0)
        answer.add_done_callback(partial(self._accepted, submission))
        return answer

    def _accepted(self, submission: Submission, answer: asyncio.Future[Accepted | KeyReused]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            outcome = answer.result()
            if isinstance(outcome, Accepted) and outcome.publish_now:
                self._publish((submission,))

    async def accept_all(self, submissions: Sequence[Submission]) -> Sequence[Accepted | KeyReused | StoreError]:
        """Make all of them durable together; the outcome or the error of each."""
        flowing = {provider: self._ours(provider) for provider in {each.provider for each in submissions}}
        if len(set(flowing.values())) > 1:  # a statement has one grace
            ours = [each for each in submissions if flowing[each.provider]]
            others = [each for each in submissions if not flowing[each.provider]]
            both = await asyncio.gather(self.accept_all(ours), self.accept_all(others))
            outcomes = {each.id: outcome for each, outcome in zip((*ours, *others), chain(*both), strict=True)}
            return [outcomes[each.id] for each in submissions]
        grace = self._grace if any(flowing.values()) else 0.0
        answers = await self._tasks.accept_all(submissions, grace)
        self._publish(
            [
                submission
                for submission, answer in zip(submissions, answers, strict=True)
                if isinstance(answer, Accepted) and answer.publish_now
            ]
        )
        return answers

    def _ours(self, provider: str | None) -> bool:
        """Whether a task of this provider's is published from here."""
        return self._publisher.healthy and len(self._pending) < MAX_PENDING and self._circuits.flowing(provider)

    def _publish(self, submissions: Sequence[Submission]) -> None:
        self._pending += [PendingPublish(each.id, each.type, 1, each.key, each.traceparent) for each in submissions]
        if self._publishing is None and self._pending:
            self._publishing = asyncio.create_task(self._publish_pending(), context=Context())

    async def drain(self) -> None:
        """Publish what was promised; what Kafka does not take stays due."""
        if self._publishing is not None:
            await self._publishing

    async def _publish_pending(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending[:PUBLISH_BATCH], self._pending[PUBLISH_BATCH:]
                try:
                    await self._publisher.publish(batch)
                except StoreError as error:
                    log.warning("published tasks are not confirmed: the relay will", extra={"error": str(error)})
        finally:
            self._publishing = None
