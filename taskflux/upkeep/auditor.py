"""Looks for records that Kafka lost, and has their tasks published again, at a bounded rate."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from taskflux.store.database import Database
from taskflux.store.tasks import FIRST_ID
from taskflux.store.upkeep import Published, Upkeep
from taskflux.stream.positions import Positions, TopicPositions
from taskflux.stream.topics import task_group, task_topic
from taskflux.telemetry import metrics
from taskflux.worker.settings import Settings

log = logging.getLogger(__name__)

PAGE: Final = 20_000
"""Tasks that one statement reads."""
SHARE: Final = 0.05
"""Share of the time that the auditor keeps PostgreSQL busy, at most: a large table is audited less often."""


class Pace:
    """Schedules batches so that all of them together do not exceed `rate` items a second.

    Times are in seconds of one monotonic clock.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free = float("-inf")

    def start(self, now: float) -> float:
        """Seconds until the first item of the next batch may be sent."""
        return max(0.0, self._free - now)

    def took(self, count: int, now: float) -> None:
        """A batch of `count` was sent from the time that `start` returned."""
        self._free = max(self._free, now) + count / self.rate


class Auditor:
    """Compares the queued tasks in PostgreSQL with what Kafka holds.

    The order of reading makes it safe: a task's row first, then the log's positions. The record of that row was
    confirmed before, so the log's end has passed it. A worker that claimed the task meanwhile changed the row before it
    committed the offset, so the compare-and-set of the row then changes nothing.
    """

    def __init__(self, settings: Settings, database: Database, positions: Positions) -> None:
        self._upkeep = Upkeep(database)
        self._positions = positions
        self._prefix = settings.kafka.topic_prefix
        self._interval = settings.relay.audit_seconds
        self._pace = Pace(settings.relay.requeue_rate)
        self._reading = 0.0

    async def keep_auditing(self) -> None:
        """Audit until cancelled.

        Raises:
            StoreError, KafkaUnavailable: a server is unreachable; audit again when it is available.
        """
        while True:
            self._reading = 0.0
            requeued = await self.audit()
            pause = max(self._interval, self._reading / SHARE)
            log.debug("audited", extra={"requeued": requeued, "pause": pause})
            await asyncio.sleep(pause)

    async def audit(self) -> Counter[str]:
        """Audit all tasks once, and return how many of each type have to be published again."""
        requeued: Counter[str] = Counter()
        loop, after = asyncio.get_running_loop(), FIRST_ID
        while True:
            began = loop.time()
            last, queued = await self._upkeep.audit_page(after, PAGE)
            self._reading += loop.time() - began
            if queued:
                requeued.update(await self._requeue(await self._lost(queued)))
            if last is None:
                return requeued
            after = last

    async def _lost(self, queued: Sequence[Published]) -> list[Published]:
        seen: dict[str, TopicPositions | None] = {}
        for task_type in {task.type for task in queued}:
            topic, group = task_topic(self._prefix, task_type), task_group(self._prefix, task_type)
            seen[task_type] = await self._positions.read(group, topic)
        return [task for task in queued if not will_deliver(task, seen[task.type])]

    async def _requeue(self, lost: Sequence[Published]) -> Mapping[str, int]:
        if not lost:
            return {}
        now = asyncio.get_running_loop().time()
        counts = await self._upkeep.requeue(lost, self._pace.rate, self._pace.start(now))
        self._pace.took(sum(counts.values()), now)
        for task_type, tasks in counts.items():
            metrics.REQUEUED.labels(task_type).inc(tasks)
            log.warning("Kafka lost records: they are published again", extra={"type": task_type, "tasks": tasks})
        return counts


def will_deliver(task: Published, positions: TopicPositions | None) -> bool:
    """Whether Kafka will still deliver the record of `task`; `positions` None: the topic does not exist."""
    if positions is None or task.log is None or task.partition is None or task.offset is None:
        return False
    return positions.will_deliver(task.log, task.partition, task.offset)
