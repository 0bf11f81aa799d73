"""Bulk replays of dead letters, carried on batch by batch by the leader.

All that has to be remembered stands in the store, so it does not matter who carries the next batch: a replay goes on
where it was when its carrier is lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Final

from uuid_utils.compat import uuid7

from taskflux.store.dead_letters import BulkReplay, DeadLetterReplays
from taskflux.store.errors import RefusedData, SchemaTooOld, StoreBusy, StoreError
from taskflux.store.publishing import Publishing
from taskflux.store.tasks import Receipts
from taskflux.store.upkeep import Upkeep
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.positions import Positions
from taskflux.telemetry import metrics, tracing
from taskflux.upkeep.auditor import Auditor, Pace
from taskflux.upkeep.measuring import Measuring
from taskflux.worker.process import Process

log = logging.getLogger(__name__)

BATCH: Final = 500
SIZE: Final = "db.operation.batch.size"
REPLAY: Final = tracing.Operation("replay tasks", "INTERNAL", tracing.POSTGRES)
ROUNDS: Final = 10
"""Batches of each bulk replay in one tick, at most: the leader has other things to do as well."""


class BulkReplays:
    """Sends as many letters as the rates of the running bulk replays allow."""

    def __init__(self, replays: DeadLetterReplays) -> None:
        self._replays = replays

    async def tick(self) -> None:
        """Carry every running bulk replay on by what its rate allows now.

        Raises:
            StoreUnavailable: PostgreSQL is away; what was sent is recorded, the rest follows with the next tick.
        """
        try:
            for _ in range(ROUNDS):
                allowed = [bulk for bulk in await self._replays.running() if bulk.allowance > 0]
                if not allowed:
                    return
                for bulk in allowed:
                    await self._carry_on(bulk)
        except SchemaTooOld as error:
            # Nobody can have asked for one yet.
            log.debug("no bulk replays before the next migration", extra={"error": str(error)})
        except (StoreBusy, RefusedData) as error:
            log.warning("a bulk replay waits for the next tick", extra={"error": type(error).__name__})

    async def _carry_on(self, bulk: BulkReplay) -> None:
        limit = min(bulk.allowance, BATCH)
        began = time.time_ns()
        looked_at, replayed = await self._replays.carry_on(bulk, limit)
        # Only now it is known whose traces it is about.
        traceparents = (letter.traceparent for letter in replayed)
        with tracing.batch(REPLAY, traceparents, size=SIZE, began=began):
            pass
        for letter in replayed:
            metrics.REPLAYED.labels(metrics.error_class(letter.error_class), "bulk").inc()
        if looked_at < limit:
            log.info("a bulk replay has come to its end", extra={"replay": str(bulk.id)})


NAME: Final = "relay"
TICK: Final = 1.0
SWEEP: Final = 500
WEEKS_AHEAD: Final = 4
HOURLY: Final = 3600.0


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
        self._measuring = Measuring(process.settings, upkeep.database, positions)
        self._auditor = auditor
        self._pace = Pace(self._settings.relay.requeue_rate)
        self._receipts = Receipts(upkeep.database)
        self._bulk_replays = BulkReplays(DeadLetterReplays(upkeep.database))
        self._id = uuid7()
        self._led_since: float | None = None
        self._last_tick = 0.0
        self._housekept = float("-inf")
        self._beside: dict[str, asyncio.Task[None]] = {}
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
                    metrics.LEADER.labels().set(0)
                await self._process.pause(TICK)
        finally:
            metrics.LEADER.labels().set(0)
            await self._stop_beside()
            with suppress(StoreError):  # it expires by itself
                await self._upkeep.resign(NAME, self._id)
            self.ended.set()

    async def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        seconds = self._settings.relay.leader_seconds
        leads = await self._upkeep.lead(NAME, self._id, seconds, self._settings.worker.origin)
        metrics.LEADER.labels().set(leads)
        if not leads:
            self._led_since = None
            await self._stop_beside()
            return
        if self._led_since is None or now - self._last_tick > seconds:
            self._led_since = now
        self._last_tick = now
        self._keep_beside()
        await self._sweep(now - self._led_since)
        while types := await self._publishing.expire(SWEEP):
            for task_type in types:
                metrics.ATTEMPTS.labels(task_type, "expired").inc()
        await self._receipts.resolve_early(SWEEP)
        await self._bulk_replays.tick()
        await self._keep_house(now)

    def _keep_beside(self) -> None:
        """Whatever takes long goes on beside the ticks: leases are swept meanwhile."""
        for name, work in {"audit": self._auditor.keep_auditing, "measuring": self._measuring.keep_measuring}.items():
            task = self._beside.get(name)
            if task is not None and task.done():
                error = task.exception()
                if not isinstance(error, StoreError | KafkaUnavailable):
                    raise error or RuntimeError(f"the {name} ended")
                log.warning("the %s was broken off and begins again", name, extra={"error": str(error)})
                task = None
            if task is None:
                self._beside[name] = asyncio.create_task(work())

    async def _stop_beside(self) -> None:
        tasks, self._beside = list(self._beside.values()), {}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

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
        if now - self._housekept >= HOURLY:
            self._housekept = now
            await self._upkeep.make_partitions(WEEKS_AHEAD)
            while await self._upkeep.forget_keys(1000):
                pass
            await self._upkeep.forget_workers()
