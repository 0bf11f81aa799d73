"""Accepting a task: durable in PostgreSQL first, published after."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
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

    async def accept(self, submission: Submission) -> Accepted | KeyReused:
        """Make `submission` durable.

        Raises:
            StoreUnavailable: PostgreSQL is unavailable; nothing is promised.
            RefusedData: a value cannot be stored.
        """
        ours = (
            self._publisher.healthy and len(self._pending) < MAX_PENDING and self._circuits.flowing(submission.provider)
        )
        answer = await self._tasks.accept(submission, self._grace if ours else 0.0)
        if isinstance(answer, Accepted) and answer.publish_now:
            self._pending.append(
                PendingPublish(submission.id, submission.type, 1, submission.key, submission.traceparent)
            )
            if self._publishing is None:
                self._publishing = asyncio.create_task(self._publish_pending(), context=Context())
        return answer

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
