"""The work that one relay, the leader, does for all processes; jobs on dead letters are part of it.

The progress of a job is stored, so any leader can continue it: batch by batch, where the last one stopped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from uuid_utils.compat import uuid7

from taskflux.store.dead_letters import BulkReplay, DeadLetters
from taskflux.store.errors import RefusedData, SchemaTooOld, StoreBusy, StoreError, level_of
from taskflux.store.notifications import Receipts
from taskflux.store.publishing import Publishing
from taskflux.store.upkeep import Upkeep
from taskflux.stream.client import KafkaUnavailable
from taskflux.telemetry import metrics, tracing
from taskflux.upkeep.measuring import Measuring
from taskflux.upkeep.recovery import Auditor, LeaseSweep
from taskflux.worker.process import Process

log = logging.getLogger(__name__)

NAME: Final = "relay"
TICK: Final = 1.0
"""Seconds between two ticks: each asks for the leadership, and does the duties of every tick."""
EVERY_TICK: Final = 0.0
HOURLY: Final = 3600.0
BATCH: Final = 500
CAUSES: Final = 100
"""Causes that are computed at once."""
WEEKS_AHEAD: Final = 4


@dataclass(slots=True)
class _Duty:
    """Short work that is done every `every` seconds."""

    every: float
    work: Callable[[], Awaitable[object]]
    done: float = float("-inf")


class Leader:
    """Leads, or stands by. Its duties are listed in the constructor, with their periods.

    `clock` returns monotonic seconds.
    """

    def __init__(
        self,
        process: Process,
        publishing: Publishing,
        auditor: Auditor,
        measuring: Measuring,
        sweep: LeaseSweep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings, database = process.settings, publishing.database
        self._process = process
        self._seconds = settings.relay.leader_seconds
        self._upkeep = Upkeep(database)
        self._publishing = publishing
        self._receipts = Receipts(database)
        self._sweep = sweep
        self._dead_letters = DeadLetters(database)
        self._duties = (
            _Duty(EVERY_TICK, self._expire_tasks),
            _Duty(EVERY_TICK, self._resolve_early_reports),
            _Duty(EVERY_TICK, self._upkeep.clear_suspects),
            _Duty(EVERY_TICK, BulkReplays(self._dead_letters).tick),
            _Duty(EVERY_TICK, self._backfill_causes),
            _Duty(HOURLY, self._clean_up),
        )
        # Long work runs in the background, and so does work that must not wait for the ticks.
        self._background = {
            "lease sweep": sweep.keep_sweeping,
            "audit": auditor.keep_auditing,
            "measuring": measuring.keep_measuring,
        }
        self._running: dict[str, asyncio.Task[None]] = {}
        self._clock = clock
        self._id = uuid7()
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Lead until the process drains, then resign."""
        try:
            while not self._process.draining.is_set():
                try:
                    await self.tick()
                except StoreError as error:
                    log.log(level_of(error), "the leader waits for PostgreSQL", extra={"error": str(error)})
                    metrics.LEADER.labels().set(0)
                await self._process.pause(TICK)
        finally:
            metrics.LEADER.labels().set(0)
            await self._stop_background()
            with suppress(StoreError):  # it expires by itself
                await self._upkeep.resign(NAME, self._id)
            self.ended.set()

    async def tick(self) -> None:
        """Ask for the leadership; with it, do the duties that are due.

        Raises:
            StoreError: PostgreSQL cannot be reached; the remaining duties follow with the next tick.
        """
        now = self._clock()
        try:
            leads = await self._upkeep.lead(NAME, self._id, self._seconds, self._process.settings.worker.origin)
        except StoreError:
            self._sweep.start_again()  # workers may have been unable to beat
            raise
        metrics.LEADER.labels().set(leads)
        if not leads:
            await self._stop_background()
            return
        self._keep_background()
        for duty in self._duties:
            if now - duty.done >= duty.every:
                duty.done = now
                await duty.work()

    # Duties --------------------------------------------------------------------------------------------------------

    async def _expire_tasks(self) -> None:
        while types := await self._publishing.expire(BATCH):
            for task_type in types:
                metrics.ATTEMPTS.labels(task_type, "expired").inc()

    async def _resolve_early_reports(self) -> None:
        await self._receipts.resolve_early(BATCH)

    async def _backfill_causes(self) -> None:
        for _ in range(ROUNDS):  # each keeps the loop busy for some milliseconds
            if not await self._dead_letters.backfill_causes(CAUSES):
                return

    async def _clean_up(self) -> None:
        await self._dead_letters.forget_counts()
        await self._upkeep.make_partitions(WEEKS_AHEAD)
        while await self._upkeep.forget_keys(1000):
            pass
        await self._upkeep.forget_workers()

    def _keep_background(self) -> None:
        for name, work in self._background.items():
            task = self._running.get(name)
            if task is not None and task.done():
                error = task.exception()
                if not isinstance(error, StoreError | KafkaUnavailable):
                    raise error or RuntimeError(f"the {name} ended")
                # The link to the server logs an outage once.
                level = logging.DEBUG if isinstance(error, KafkaUnavailable) else level_of(error)
                log.log(level, "the %s was interrupted and starts again", name, extra={"error": str(error)})
                task = None
            if task is None:
                self._running[name] = asyncio.create_task(work())

    async def _stop_background(self) -> None:
        tasks = list(self._running.values())
        self._running.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


REPLAY: Final = tracing.Operation("replay tasks", "INTERNAL", tracing.POSTGRES, "db.operation.batch.size")
ROUNDS: Final = 10
"""Batches of each job in one tick, at most: the leader has other duties too."""
JUDGED: Final = 100
"""The last outcomes of a job that its limit of failures is about."""
MOST_UNDER_WAY: Final = 1_000
"""A job with a limit of failures waits while so many of its replays have no outcome: else it would stop too late."""


class BulkReplays:
    """Carries on the jobs on dead letters: discards, and replays as many as their rates allow.

    A replay tries its canary first. It stops by itself where too many fail.
    """

    def __init__(self, dead_letters: DeadLetters) -> None:
        self._dead_letters = dead_letters

    async def tick(self) -> None:
        """Continue every running bulk replay by what its rate allows now.

        Raises:
            StoreUnavailable: PostgreSQL is unavailable; what was replayed is recorded, the rest follows with the next
                tick.
        """
        try:
            waiting = {bulk.id for bulk in await self._dead_letters.running_bulk() if not await self._goes_on(bulk)}
            for _ in range(ROUNDS):
                running = await self._dead_letters.running_bulk()
                allowed = [bulk for bulk in running if bulk.id not in waiting and _may_send(bulk)]
                if not allowed:
                    return
                for bulk in allowed:
                    await self._carry_on(bulk)
        except SchemaTooOld as error:
            # Without its table, no bulk replay can have been requested.
            log.debug("no bulk replays before the next migration", extra={"error": str(error)})
        except (StoreBusy, RefusedData) as error:
            log.warning("a bulk replay waits for the next tick", extra={"error": type(error).__name__})

    async def _goes_on(self, bulk: BulkReplay) -> bool:
        """Whether the next dead letters of a job may follow; it is stopped here where too many have failed."""
        if bulk.status == "canary":
            return await self._canary_goes_on(bulk)
        if bulk.most_failures is None or not bulk.replayed:
            return True
        under_way, failed = await self._dead_letters.recent_of_bulk(bulk.id, MOST_UNDER_WAY, JUDGED)
        if failed > bulk.most_failures * JUDGED:
            return await self._stop(bulk, f"{failed} of its last {JUDGED} replays failed")
        return under_way < MOST_UNDER_WAY

    async def _canary_goes_on(self, bulk: BulkReplay) -> bool:
        if bulk.replayed < bulk.canary:
            return True
        outcomes = await self._dead_letters.canary_of_bulk(bulk.id)
        failed, waits = outcomes.count(False), outcomes.count(None)
        most = 0.5 if bulk.most_failures is None else bulk.most_failures
        if failed > most * len(outcomes):
            return await self._stop(bulk, f"{failed} of the {len(outcomes)} that were tried first failed")
        if not waits:
            await self._dead_letters.pass_canary(bulk.id)
            return True
        if bulk.overdue:
            return await self._stop(
                bulk, f"{waits} of the {len(outcomes)} that were tried first have no outcome in time"
            )
        return False

    async def _stop(self, bulk: BulkReplay, because: str) -> bool:
        if await self._dead_letters.stop_bulk(bulk.tenant, bulk.id, because):
            log.warning("a bulk replay was stopped: %s", because, extra={"replay": str(bulk.id)})
        return False

    async def _carry_on(self, bulk: BulkReplay) -> None:
        began = time.time_ns()
        ended, replayed = await self._dead_letters.carry_on(bulk, min(bulk.allowance, BATCH))
        if tracing.on:  # only now the traces are known
            with tracing.batch(REPLAY, [each.traceparent for each in replayed], began=began):
                pass
        for each in replayed:
            metrics.REPLAYED.labels(metrics.error_class(each.error_class), "bulk").inc()
        if ended:
            log.info("a bulk job has ended", extra={"replay": str(bulk.id)})


def _may_send(bulk: BulkReplay) -> bool:
    return bulk.allowance > 0 and (bulk.status != "canary" or bulk.replayed < bulk.canary)
