"""What one relay of all does: the lease sweep, the auditor, expiry, bulk replays, partitions, and the depth metrics."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from uuid_utils.compat import uuid7

from handlers.runtime import metrics
from handlers.runtime.auditor import Auditor
from handlers.runtime.bulk_replay import BulkReplays
from handlers.runtime.pace import Pace
from handlers.runtime.process import Process
from handlers.store.dead_letter_replays import DeadLetterReplays
from handlers.store.errors import StoreError
from handlers.store.publishing import Publishing
from handlers.store.receipts import Receipts
from handlers.store.task_types import TaskTypes
from handlers.store.upkeep import Upkeep
from handlers.stream.errors import KafkaUnavailable
from handlers.stream.positions import Positions
from handlers.stream.topics import task_group, task_topic

log = logging.getLogger(__name__)

NAME: Final = "relay"
TICK: Final = 1.0
SWEEP: Final = 500
WEEKS_AHEAD: Final = 4
HOURLY: Final = 3600.0
DEPTH_EVERY: Final = 5.0


class Leader:
    """Leads, or stands by to.

    A lease counts as run out only when its worker had every chance to renew it: we have led, and PostgreSQL has been
    up, without interruption for one whole lease.
    """

    def __init__(
        self, process: Process, upkeep: Upkeep, publishing: Publishing, positions: Positions, auditor: Auditor
    ) -> None:
        self._process = process
        self._settings = process.settings
        self._upkeep = upkeep
        self._publishing = publishing
        self._positions = positions
        self._types = TaskTypes(upkeep.database)
        self._auditor = auditor
        self._pace = Pace(self._settings.relay.requeue_rate)
        self._receipts = Receipts(upkeep.database)
        self._bulk_replays = BulkReplays(DeadLetterReplays(upkeep.database))
        self._id = uuid7()
        self._led_since: float | None = None
        self._last_tick = 0.0
        self._housekept = self._measured = float("-inf")
        self._auditing: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Lead until the process drains, then resign."""
        try:
            while not self._process.draining.is_set():
                try:
                    await self._tick()
                except StoreError as error:
                    log.warning("the leader waits for PostgreSQL", extra={"error": str(error)})
                    self._led_since = None
                await self._process.pause(TICK)
        finally:
            await self._stop_auditing()
            with suppress(StoreError):  # it expires by itself
                await self._upkeep.resign(NAME, self._id)
            self.ended.set()

    async def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        seconds = self._settings.relay.leader_seconds
        leads = await self._upkeep.lead(NAME, self._id, seconds, self._settings.worker.origin)
        metrics.LEADER.set(leads)
        if not leads:
            self._led_since = None
            await self._stop_auditing()
            return
        if self._led_since is None or now - self._last_tick > seconds:
            self._led_since = now
        self._last_tick = now
        self._keep_auditing()
        await self._sweep(now - self._led_since)
        while types := await self._publishing.expire(SWEEP):
            for task_type in types:
                metrics.ATTEMPTS.labels(task_type, "expired").inc()
        await self._receipts.resolve_early(SWEEP)
        await self._bulk_replays.tick()
        await self._keep_house(now)

    def _keep_auditing(self) -> None:
        if self._auditing is not None and self._auditing.done():
            error = self._auditing.exception()
            if not isinstance(error, StoreError | KafkaUnavailable):
                raise error or RuntimeError("the auditor ended")
            log.warning("the audit was broken off and begins again", extra={"error": str(error)})
            self._auditing = None
        if self._auditing is None:
            self._auditing = asyncio.create_task(self._auditor.keep_auditing())

    async def _stop_auditing(self) -> None:
        task, self._auditing = self._auditing, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _sweep(self, led_for: float) -> None:
        lease = self._settings.worker.lease_seconds
        patient = led_for >= lease and await self._upkeep.server_uptime() >= lease
        while True:
            now = asyncio.get_running_loop().time()
            swept = await self._upkeep.sweep(lease if patient else None, SWEEP, self._pace.rate, self._pace.start(now))
            self._pace.took(sum(swept.tasks.values()), now)
            for (task_type, state), tasks in swept.tasks.items():
                metrics.LEASES_SWEPT.labels(task_type, state).inc(tasks)
                if state == "scheduled":
                    metrics.REPEATS.labels(task_type).inc(tasks)
                log.warning("tasks of a lost worker", extra={"type": task_type, "state": state, "tasks": tasks})
            if swept.looked_at < SWEEP:
                return

    async def _keep_house(self, now: float) -> None:
        if now - self._measured >= DEPTH_EVERY:
            self._measured = now
            await self._measure()
        if now - self._housekept >= HOURLY:
            self._housekept = now
            await self._upkeep.make_partitions(WEEKS_AHEAD)
            while await self._upkeep.forget_keys(1000):
                pass
            await self._upkeep.forget_workers()

    async def _measure(self) -> None:
        metrics.DEPTH.clear()
        metrics.OLDEST.clear()
        for depth in await self._upkeep.depth():
            metrics.DEPTH.labels(depth.type, depth.state).set(depth.tasks)
            if depth.oldest is not None and depth.state == "scheduled":
                metrics.OLDEST.labels(depth.type).set(max(0.0, depth.oldest))
        metrics.KAFKA_LAG.clear()
        prefix = self._settings.kafka.topic_prefix
        with suppress(KafkaUnavailable):  # a gap in the lag says so better than a stale figure
            for name in await self._types.names():
                lag = await self._positions.lag(task_group(prefix, name), task_topic(prefix, name))
                metrics.KAFKA_LAG.labels(name).set(lag or 0)
