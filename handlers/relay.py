"""relay: publishes the outbox — scheduled tasks, retries, publishes never confirmed, dead letters — and, as one elected
leader, recovers what was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack

from taskflux.store.database import Database
from taskflux.store.errors import StoreError, level_of
from taskflux.store.publishing import Circuits, Publishing
from taskflux.store.tasks import TaskTypes
from taskflux.store.upkeep import Upkeep
from taskflux.stream.positions import Positions
from taskflux.stream.producer import Producer
from taskflux.telemetry import metrics
from taskflux.upkeep.leader import Leader
from taskflux.upkeep.measuring import Measuring
from taskflux.upkeep.outflow import Outflow
from taskflux.upkeep.recovery import Auditor, LeaseSweep
from taskflux.worker.process import Process, service
from taskflux.worker.publisher import Publisher

log = logging.getLogger(__name__)


@service("relay")
async def relay(process: Process) -> None:
    """Publish the outbox until the process drains."""
    settings = process.settings
    async with AsyncExitStack() as stack:
        database = Database(settings.postgres, pool_size=4, name=process.label)
        await database.open()
        stack.push_async_callback(database.close)
        producer = Producer(settings.kafka)
        await producer.start()
        stack.push_async_callback(producer.stop)
        positions = Positions(settings.kafka)
        stack.push_async_callback(positions.close)
        publishing = Publishing(database, settings.relay.grace)
        publisher = Publisher(producer, publishing, settings.kafka.topic_prefix)
        outflow = Outflow(settings, positions, Circuits(database), TaskTypes(database))
        auditor = Auditor(settings, database, positions)
        rate, losses_alone = settings.relay.requeue_rate, settings.relay.losses_alone
        sweep = LeaseSweep(Upkeep(database), settings.worker.lease_seconds, rate, losses_alone=losses_alone)
        leader = Leader(process, publishing, auditor, Measuring(settings, database, positions), sweep)
        if settings.scaler.port is not None:
            from taskflux.upkeep import scaler  # lazily: gRPC is loaded only where KEDA is served

            asked = Positions(settings.kafka)  # its failures close no connection of the others
            stack.push_async_callback(asked.close)
            await stack.enter_async_context(scaler.serving(process, database, asked))
        async with process.background(leader.run()):
            process.started()
            await Relay(process, publishing, publisher, outflow).run()
            await leader.ended.wait()


class Relay:
    """Sleeps until the next row is due, and publishes as much of each type as may flow."""

    def __init__(self, process: Process, publishing: Publishing, publisher: Publisher, outflow: Outflow) -> None:
        self._process = process
        self._settings = process.settings.relay
        self._publishing = publishing
        self._publisher = publisher
        self._outflow = outflow

    async def run(self) -> None:
        """Publish until the process drains."""
        while not self._process.draining.is_set():
            try:
                wait = await self._round()
            except* StoreError as errors:  # types are published concurrently: several may meet it
                error = errors.exceptions[0]
                log.log(level_of(error), "the relay waits for PostgreSQL", extra={"error": str(error)})
                wait = self._settings.max_wait
            if wait > 0:
                await self._process.pause(wait)

    async def _round(self) -> float:
        """Publish once; seconds to sleep then."""
        due = await self._publishing.next_due(self._settings.max_wait)
        metrics.RELAY_LAG.labels().set(max(0.0, -min(due.values(), default=0.0)))
        if not self._publisher.healthy:
            return self._settings.max_wait
        overdue = [task_type for task_type, wait in due.items() if wait <= 0]
        if overdue:
            await self._outflow.refresh()
        async with asyncio.TaskGroup() as group:
            releases = [group.create_task(self._release(task_type)) for task_type in overdue]
        if any(release.result() for release in releases):
            return 0
        return self._sleep(due)

    def _sleep(self, due: Mapping[str | None, float]) -> float:
        return min([self._settings.max_wait, *(wait for wait in due.values() if wait > 0)])

    async def _release(self, task_type: str | None) -> int:
        """Publish what may flow of `task_type` (None: dead letters); how many."""
        if task_type is None:
            dead = await self._publishing.take_dead(self._settings.batch)
            return await self._publisher.publish_dead(dead)
        allowance = await self._outflow.allowance(task_type)
        if not allowance.tasks:
            return 0
        limit = min(allowance.tasks, self._settings.batch)
        tasks = await self._publishing.take(task_type, limit, probe=allowance.probe)
        published = await self._publisher.publish(tasks, probe=allowance.probe)
        self._outflow.released(task_type, published)
        return published
