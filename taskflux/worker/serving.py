"""What a handler's process is put together from."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any

from pydantic import BaseModel
from uuid_utils.compat import uuid7

from taskflux.providers.notify_settings import NotifySettings
from taskflux.providers.provider import Provider
from taskflux.store.circuits import Circuits
from taskflux.store.claims import Claims
from taskflux.store.claims import Worker as WorkerRow
from taskflux.store.database import Database
from taskflux.store.dead_letters import DeadLetters
from taskflux.store.errors import StoreBusy, StoreError, StoreUnavailable
from taskflux.store.foreign import ForeignTasks
from taskflux.store.task_types import TaskTypes
from taskflux.stream.consumer import Consumer, ConsumerHooks
from taskflux.stream.errors import KafkaUnavailable
from taskflux.stream.provision import ensure_topics
from taskflux.stream.topics import task_group, task_topic
from taskflux.telemetry import metrics, store_metrics, zeros
from taskflux.telemetry.message_spans import Destination
from taskflux.worker.adoption import Adoption
from taskflux.worker.circuits import CircuitWatch, Gate
from taskflux.worker.executor import Executor
from taskflux.worker.handler import Handler
from taskflux.worker.lease import Lease
from taskflux.worker.limiter import Limiter
from taskflux.worker.poison import PoisonOutlet
from taskflux.worker.process import Process
from taskflux.worker.settings import load_provider
from taskflux.worker.worker import FIRST_WAIT, LAST_WAIT, LeaseEnded, Worker

log = logging.getLogger(__name__)


async def serve(handler: Handler[Any], process: Process) -> None:
    """Run `handler` until the process drains.

    Raises:
        WrongSettings: the provider's settings are wrong.
        SchemaTooOld: the database was not migrated.
    """
    settings = process.settings
    provider = handler.provider
    section, connecting = _provider(provider, settings.notify)
    async with AsyncExitStack() as stack:
        database = Database(settings.postgres, pool_size=2, name=process.label, watch=store_metrics.DATABASE)
        await database.open()
        stack.push_async_callback(database.close)
        if not await _register(handler, database, process):
            return
        client = await stack.enter_async_context(connecting) if connecting else None
        accelerator = store_metrics.accelerator(settings.redis)
        await accelerator.open()
        stack.push_async_callback(accelerator.close)
        name = provider.name if provider else handler.type
        if provider:
            zeros.of_provider(name if section is not None else "notify")
        zeros.of_adopted([handler.type])
        limiter = Limiter(name, getattr(section, "rate", None), accelerator, metrics.RATE_WAIT.labels(name).observe)
        watch = CircuitWatch(Circuits(database))
        await stack.enter_async_context(process.background(watch.keep_fresh()))
        poison = PoisonOutlet(process, DeadLetters(database))
        stack.push_async_callback(poison.close)
        while not process.draining.is_set():
            # A lease that somebody ended is replaced: the same process under a new identity.
            with suppress(LeaseEnded):
                await _work(handler, process, database, Gate(handler.policy.provider, watch), limiter, client, poison)


def _provider(
    provider: Provider[Any] | None, notify: NotifySettings
) -> tuple[BaseModel | None, AbstractAsyncContextManager[Any] | None]:
    """A provider's settings and its client to be opened.

    Through the notification service there are no settings: it holds the credentials, and keeps to the rate limit.
    """
    if provider is None:
        return None, None
    if provider.through is not None and notify.url is not None:
        return None, provider.through(notify)
    section = load_provider(provider.name, provider.settings)
    return section, provider.connect(section)


async def _work(
    handler: Handler[Any],
    process: Process,
    database: Database,
    gate: Gate,
    limiter: Limiter,
    client: object | None,
    poison: PoisonOutlet,
) -> None:
    """One identity of this worker, from its first beat to the end of its lease."""
    settings = process.settings
    row = WorkerRow(uuid7(), handler.name, process.label, os.getpid(), settings.worker.origin, handler.type)
    claims = Claims(database, row)
    lease = Lease(claims, settings.worker.lease_seconds, lambda: executor.in_flight)
    concurrency = settings.worker.concurrency or handler.concurrency
    prefix = settings.kafka.topic_prefix
    source = Destination(task_topic(prefix, handler.type), task_group(prefix, handler.type))
    executor = Executor(handler, client, claims, lease, gate, limiter, concurrency, source)
    consumer = Consumer(settings.kafka, source.group, [source.topic], consumer_hooks())
    async with (
        process.background(lease.keep(settings.worker.beat_seconds)),
        process.background(_topic(handler, process)),
    ):
        await consumer.start()
        process.started()
        try:
            adoption = Adoption(process, ForeignTasks(database), settings.relay.grace)
            await Worker(handler, process, claims, consumer, executor, lease, poison, adoption, source).run()
        finally:
            with suppress(StoreError):  # it runs out by itself then
                await claims.end()


async def _topic(handler: Handler[Any], process: Process) -> None:
    """Make the type's topic if it is missing: a handler of one's own runs by being run.

    Where this is not allowed to us, `taskflux topics` does it with other credentials; the consumer waits meanwhile.
    """
    while True:
        try:
            report = await ensure_topics(process.settings.kafka, [handler.type])
        except KafkaUnavailable as error:
            log.debug("waiting for Kafka", extra={"error": str(error)})
            await asyncio.sleep(LAST_WAIT)
        else:
            for topic, reason in report.refused.items():
                log.warning("a topic is missing and cannot be created", extra={"topic": topic, "error": reason})
            return


async def _register(handler: Handler[Any], database: Database, process: Process) -> bool:
    """Make the type known, however long PostgreSQL is away; false when told to drain meanwhile."""
    wait = FIRST_WAIT
    while not process.draining.is_set():
        try:
            await TaskTypes(database).register(handler.task_type())
        except (StoreUnavailable, StoreBusy) as error:
            log.warning("waiting for PostgreSQL", extra={"error": str(error)})
            await process.pause(wait)
            wait = min(wait * 2, LAST_WAIT)
        else:
            return True
    return False


def consumer_hooks() -> ConsumerHooks:
    """A consumer's events as metrics."""
    rebalances = metrics.REBALANCES.labels()
    return ConsumerHooks(
        on_assigned=lambda partitions: rebalances.inc(),
        on_commit_failed=lambda error: metrics.COMMITS_FAILED.labels(error).inc(),
    )
