"""Finds what was lost, and makes it run again at a bounded rate: records that Kafka lost, and tasks of lost workers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final
from uuid import UUID

from taskflux.store.database import Database
from taskflux.store.errors import StoreError
from taskflux.store.tasks import FIRST_ID
from taskflux.store.upkeep import Beat, Deliverable, Published, Upkeep
from taskflux.stream.positions import Positions, TopicPositions
from taskflux.stream.topics import task_group, task_topic
from taskflux.tasks.decision import LOSSES_ALONE
from taskflux.telemetry import metrics
from taskflux.worker.settings import Settings

log = logging.getLogger(__name__)

PAGE: Final = 2_000
"""Rows that one statement reads."""
SHARE: Final = 0.05
"""Share of a core that the auditor keeps busy, at most: it pauses after each page."""


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
    """Compares the published tasks in the outbox with what Kafka holds.

    PostgreSQL compares a page with the positions that were read last, so that only suspects are looked at here: what
    was published since, and what is lost. They are compared again, with new positions.

    The order of reading makes it safe: a task's outbox row first, then the log's positions. The record of that row was
    confirmed before, so the log's end has passed it. A worker that claimed the task meanwhile has committed its claim
    before the offset, so the requeue finds the task claimed, and changes nothing.
    """

    def __init__(self, settings: Settings, database: Database, positions: Positions) -> None:
        self._upkeep = Upkeep(database)
        self._positions = positions
        self._prefix = settings.kafka.topic_prefix
        self._interval = settings.relay.audit_seconds
        self._pace = Pace(settings.relay.requeue_rate)

    async def keep_auditing(self) -> None:
        """Audit until cancelled.

        Raises:
            StoreError, KafkaUnavailable: a server is unreachable; audit again when it is available.
        """
        while True:
            requeued = await self.audit(SHARE)
            log.debug("audited", extra={"requeued": requeued})
            await self._backfill(self._interval)

    async def _backfill(self, seconds: float) -> None:
        """Pass this time, until the next audit, with making outbox rows that are missing.

        That reads all tasks once, a page at a time.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (began := loop.time()) < until:
            if not await self._upkeep.backfill(PAGE):
                await asyncio.sleep(max(0.0, until - loop.time()))
                return
            await asyncio.sleep(rest(loop.time() - began, SHARE))

    async def audit(self, share: float = 1.0) -> Counter[str]:
        """Audit all published tasks once, and return how many of each type have to be published again.

        `share` of the time is spent on reading them.
        """
        requeued: Counter[str] = Counter()
        suspects: list[Published] = []
        known: dict[str, TopicPositions | None] = {}
        loop, after = asyncio.get_running_loop(), FIRST_ID
        while True:
            began = loop.time()
            last, found = await self._upkeep.audit_page(after, PAGE, list(_deliverable(known)))
            busy = loop.time() - began
            suspects += found
            types = {task.type for task in suspects}
            if suspects and (last is None or len(suspects) >= PAGE or types - known.keys()):
                known |= await self._read(types | known.keys())
                requeued.update(await self._requeue([each for each in suspects if not will_deliver(each, known)]))
                suspects.clear()
            if last is None:
                return requeued
            after = last
            await asyncio.sleep(rest(busy, share))

    async def _read(self, types: Collection[str]) -> Mapping[str, TopicPositions | None]:
        topics = {name: task_topic(self._prefix, name) for name in types}
        found = await self._positions.read_all(
            {topic: task_group(self._prefix, name) for name, topic in topics.items()}
        )
        return {name: found.get(topic) for name, topic in topics.items()}

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


def _deliverable(known: Mapping[str, TopicPositions | None]) -> Iterator[Deliverable]:
    for name, at in known.items():
        if at is not None:
            for number, place in at.partitions.items():
                yield Deliverable(name, at.log_id, number, place.next, place.end)


def rest(busy: float, share: float) -> float:
    """Seconds to sleep until the last `busy` seconds are this share of the time."""
    return busy * (1 / share - 1)


def will_deliver(task: Published, known: Mapping[str, TopicPositions | None]) -> bool:
    """Whether Kafka will still deliver the record of `task`, by the positions of its type's topic.

    None: the topic does not exist.
    """
    positions = known.get(task.type)
    if positions is None or task.log is None or task.partition is None or task.offset is None:
        return False
    return positions.will_deliver(task.log, task.partition, task.offset)


LOOK: Final = 1.0
"""Seconds between two readings of the workers' beats."""
GAP: Final = 5 * LOOK
"""After a gap of this many seconds between two readings, every lease is counted from the start again."""
SWEEP: Final = 500
"""Claims at which one statement stops; all claims of one worker are freed by the same statement."""
ROUNDS: Final = 10
"""Statements that free claims between two readings, at most."""


class LeaseSweep:
    """Ends the leases of silent workers, and frees the claims of every lease that was ended.

    A lease of `seconds` has expired once the same beat was seen for that long by `clock` (monotonic seconds), without a
    gap between readings. Wall clocks are never compared, so a clock that is set ends no lease.

    Whatever may have kept workers from beating, or us from seeing it, starts the count again: a start of PostgreSQL, a
    failed statement, a gap between two readings, a new leadership. A worker counts from before its beat is written, we
    from after reading it, so a worker knows that its lease has expired before we end it.

    Several of these at once do no harm: each change compares and sets.
    """

    def __init__(
        self,
        upkeep: Upkeep,
        seconds: float,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        losses_alone: int = LOSSES_ALONE,
    ) -> None:
        self._upkeep = upkeep
        self._seconds = seconds
        self._pace = Pace(rate)
        self._clock = clock
        self._losses_alone = losses_alone
        self._seen: dict[UUID, tuple[Beat, float]] = {}  # each worker's last beat, and since when it has been the same
        self._looked = float("-inf")

    async def keep_sweeping(self) -> None:
        """Sweep until cancelled. Raises StoreError: sweep again when PostgreSQL is available."""
        self.start_again()
        while True:
            await self.tick()
            await asyncio.sleep(LOOK)

    def start_again(self) -> None:
        """Give every worker a whole lease from the next reading on."""
        self._seen.clear()

    async def tick(self) -> None:
        """Read the beats, end the leases that have expired, and free the claims of ended leases.

        Raises:
            StoreError: every lease is counted from the start again.
        """
        try:
            await self._end_silent()
            await self._free_claims()
        except StoreError:
            self.start_again()
            raise

    async def _end_silent(self) -> None:
        beats = await self._upkeep.beats()
        now = self._clock()  # after the answer: the beats in it were written before
        if now - self._looked > GAP:
            self.start_again()
        self._looked = now
        self._seen = {
            worker: (beat, since if beat == before else now)
            for worker, beat in beats.items()
            for before, since in [self._seen.get(worker, (None, now))]
        }
        silent = {worker: beat for worker, (beat, since) in self._seen.items() if now - since >= self._seconds}
        overdue = [worker for worker in silent if now - self._seen[worker][1] >= 2 * self._seconds]
        for row in await self._upkeep.end_silent(silent, overdue):
            log.warning("a lease expired", extra={"worker": row["label"], "in_flight": row["in_flight"]})

    async def _free_claims(self) -> None:
        for _ in range(ROUNDS):
            now = self._clock()
            start = self._pace.start(now)
            swept = await self._upkeep.sweep(SWEEP, self._pace.rate, start, losses_alone=self._losses_alone)
            self._pace.took(sum(swept.tasks.values()), now)
            for (task_type, state), tasks in swept.tasks.items():
                metrics.LEASES_SWEPT.labels(task_type, state).inc(tasks)
                if state == "scheduled":
                    metrics.REPEATS.labels(task_type).inc(tasks)
                log.warning("tasks of a lost worker", extra={"type": task_type, "state": state, "tasks": tasks})
            if swept.looked_at < SWEEP:
                return
