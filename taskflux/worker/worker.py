"""A handler's process: takes records, claims their tasks in batches, and runs them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel
from uuid_utils.compat import uuid7

from taskflux.providers.provider import NotifySettings, Provider
from taskflux.store.accelerator import Accelerator
from taskflux.store.claims import Claim, Claims, LeaseEnded
from taskflux.store.claims import Worker as WorkerRow
from taskflux.store.database import Database
from taskflux.store.dead_letters import DeadLetters
from taskflux.store.errors import Stopped, StoreError, level_of, until_available
from taskflux.store.publishing import Circuits
from taskflux.store.tasks import Tasks, TaskTypes
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import Envelope, Foreign, Poison, Record, decode
from taskflux.stream.provision import ensure_topics
from taskflux.stream.topics import task_group, task_topic
from taskflux.tasks.bounds import LARGE
from taskflux.telemetry import metrics, tracing
from taskflux.telemetry.tracing import UNTRACED, Destination
from taskflux.version import VERSION
from taskflux.worker.circuits import CircuitWatch, Gate, Limiter
from taskflux.worker.executor import Executor
from taskflux.worker.foreign import PoisonOutlet, Registration
from taskflux.worker.handler import Handler
from taskflux.worker.lease import Lease
from taskflux.worker.loop_watch import watched
from taskflux.worker.outcomes import Outcomes
from taskflux.worker.process import Process, Service
from taskflux.worker.settings import load_provider
from taskflux.worker.suspects import Group, Suspects

log = logging.getLogger(__name__)

FETCH: Final = 1.0
"""Seconds that one look for records takes at most; the order to drain is seen between two."""
MAX_RECORDS: Final = 500
LOOK_FOR_LOST: Final = 30.0
"""Seconds between two looks for claims that have no attempt any more."""
TOPIC_AGAIN: Final = 2.0
"""Seconds between two tries to make a missing topic while Kafka is unreachable."""


class Worker:
    """Takes, claims and runs the tasks of one handler, under one lease."""

    def __init__(
        self, process: Process, consumer: Consumer, executor: Executor, registration: Registration, poison: PoisonOutlet
    ) -> None:
        self._process = process
        self._consumer = consumer
        self._executor = executor
        self._lease = executor.lease
        self._registration = registration
        self._poison = poison
        self._suspects = Suspects(process, executor)
        self._type = executor.handler.type
        self._asked: Mapping[UUID, int] = {}  # tasks whose claim is under way, and not the executor's yet
        self._types = {self._type: executor.handler.task_type()}
        self._claimed = metrics.CLAIMED.labels(self._type)
        self._skipped = metrics.SKIPPED.labels(self._type)
        self._batch = metrics.BATCH.labels("claim")
        self._waited = metrics.WAITED.labels(self._type)

    async def keep_lease(self) -> None:
        """Take a lease and prepare to claim, while Kafka is joined; then beat until cancelled."""
        prepared = False
        while True:
            try:
                await self._lease.renew(self._executor.in_flight)
                if not prepared:
                    await self._lease.claims.prepare(self._type)
                    prepared = True
            except StoreError as error:
                log.log(level_of(error), "the lease could not be renewed", extra={"error": str(error)})
            await asyncio.sleep(self._process.settings.worker.beat_seconds)

    async def keep_claims(self, every: float = LOOK_FOR_LOST) -> None:
        """Look for claims that have no attempt any more, each `every` seconds, until cancelled."""
        while True:
            await asyncio.sleep(every)
            try:
                await self.release_lost()
            except StoreError as error:
                log.debug("claims could not be compared", extra={"error": str(error)})

    async def release_lost(self) -> None:
        """Release the claims that PostgreSQL has of this worker and nobody here runs or is about to run.

        There is none unless something of ours has failed. It would stay `running` for as long as this worker lives.
        """
        held = await self._lease.claims.held()
        lost = {task: version - 1 for task, version in held.items() if not self._executor.runs(task, version)}
        # Claims settled meanwhile are not included; those with a pending or repeated request are claimed there.
        for claim in await self._lease.claims.reclaim(lost):
            if claim.id not in self._asked and not self._executor.runs(claim.id, claim.version):
                self._executor.release(claim)

    async def run(self) -> None:
        """Work until the process is told to drain, then end what is under way."""
        process, executor = self._process, self._executor
        try:
            while not process.draining.is_set():
                if not executor.room and not await process.wait(executor.wait_for_room()):
                    continue
                records = await self._consumer.fetch(min(executor.room, MAX_RECORDS), 0.0 if self._suspects else FETCH)
                if records and not process.draining.is_set():
                    try:
                        await self._take(records)
                    finally:
                        self._asked = {}
                # One group between two looks for other work: neither waits for all of the other.
                if self._suspects and not process.draining.is_set():
                    await self._suspects.run_next()
        finally:
            # At once: leaving the group takes seconds, and what has not begun need not wait for it.
            drain = executor.drain(process.settings.worker.drain_seconds, process.hurry)
            for failure in await asyncio.gather(drain, self._consumer.stop(), return_exceptions=True):
                if failure is not None:
                    raise failure

    async def _take(self, records: Sequence[Record]) -> None:
        """Put poison aside, claim what is ours, and only then let Kafka forget these records."""
        size = sum(len(record.value or b"") for record in records)  # of ours 100 bytes each
        ours, foreign, poison = await asyncio.to_thread(self._sort, records) if size > LARGE else self._sort(records)
        later = 0
        if foreign:
            registered = await self._registration.register(foreign, self._types)
            if registered is None:
                return
            ours |= registered.tasks
            poison += registered.poison
            later = registered.later
        # Poison first: who is told to drain in between holds no claims that never begin.
        if poison and not await self._poison.put_aside(poison):
            return  # told to drain meanwhile: the records are not committed and come again
        traces = [each.traceparent for each in ours.values()] if tracing.on else []
        self._asked = {each.task_id: each.version for each in ours.values()}
        with tracing.batch(self._executor.source.receive, traces) if tracing.on else UNTRACED as span:
            claimed = await self._claim(self._asked)
        if claimed is None:
            return
        received = None if span is None else span.traceparent
        taken = self._start(claimed, ours, received)
        done = len(taken)
        if done < len(ours):
            left = {task: version for task, version in self._asked.items() if task not in taken}
            suspects = await self._claim_suspects(left, ours, received)
            if suspects is None:
                return
            done += len(suspects & left.keys())
        self._skipped.inc(len(records) - len(poison) - later - done)
        self._consumer.note_done(records)

    def _start(
        self,
        claimed: tuple[int, Sequence[Claim]],
        ours: Mapping[UUID, Envelope],
        received: str | None,
        turn: asyncio.Event | None = None,
    ) -> set[UUID]:
        """Give claims to the executor; their tasks. `received` is the traceparent of their span."""
        term, claims = claimed
        self._claimed.inc(len(claims))
        if claims:
            self._batch.observe(len(claims))
            self._waited.observe_all([claim.waited for claim in claims])
        for claim in claims:
            record = ours.get(claim.id)  # suspects are claimed with the members of their group
            probe, sent = (record.probe, record.traceparent) if record is not None else (False, None)
            self._executor.start(claim, term, turn=turn, probe=probe, sent=sent, received=received)
        return {claim.id for claim in claims}

    async def _claim_suspects(
        self, left: Mapping[UUID, int], ours: Mapping[UUID, Envelope], received: str | None
    ) -> set[UUID] | None:
        """Claim the groups of those of these tasks that are suspects, to run each group alone; the tasks of them all.

        None when told to drain: what was claimed is released then.
        """
        try:
            claims = self._lease.claims
            groups = await until_available(lambda: claims.suspected(left), stop=self._process.draining)
        except Stopped:
            return None
        taken: set[UUID] = set()
        for versions in groups:
            self._asked = {**self._asked, **versions}
            claimed = await self._claim(versions, suspects=True)
            if claimed is None:
                return None
            _, members = claimed
            if members:
                group = Group(members)
                taken |= self._start(claimed, ours, received, group.turn)
                self._suspects.add(group)
        return taken

    def _sort(
        self, records: Sequence[Record]
    ) -> tuple[dict[UUID, Envelope], list[Foreign], list[tuple[Record, Poison]]]:
        """Our own records, the newest of each task; other producers' tasks; and those that are no task."""
        ours: dict[UUID, Envelope] = {}
        foreign: list[Foreign] = []
        poison: list[tuple[Record, Poison]] = []
        limit = self._process.settings.kafka.max_record_bytes
        for record in records:
            match decode(record, max_bytes=limit, types=(self._type,)):
                case Envelope() as envelope:
                    known = ours.get(envelope.task_id)
                    if known is None or envelope.version >= known.version:
                        ours[envelope.task_id] = envelope
                case Foreign() as found:
                    foreign.append(found)
                case Poison() as found:
                    poison.append((record, found))
        return ours, foreign, poison

    async def _claim(
        self, versions: Mapping[UUID, int], *, suspects: bool = False
    ) -> tuple[int, Sequence[Claim]] | None:
        """The lease's term and the claims, however long PostgreSQL is unavailable; None when told to drain.

        `suspects`: these are members of a group, which are left out otherwise.
        """
        claims = self._lease.claims
        asked = False

        async def claim() -> tuple[int, Sequence[Claim]]:
            nonlocal asked
            if not self._lease.valid:
                await self._lease.renew(self._executor.in_flight)
            term, found = self._lease.term, list[Claim]()
            if asked:
                # The lost answer may have been a success.
                unknown = {task: at for task, at in versions.items() if not self._executor.holds(task, at + 1)}
                found += await claims.reclaim(unknown)
            asked = True
            others = versions
            if found:
                others = {task: versions[task] for task in versions.keys() - {claim.id for claim in found}}
            try:
                return term, [*found, *await claims.claim(self._type, others, suspects=suspects)]
            except LeaseEnded:
                self._lease.lose()
                return await claim()

        try:
            return await until_available(
                claim,
                stop=self._process.draining,
                on_wait=lambda error: log.log(
                    level_of(error), "tasks could not be claimed yet", extra={"error": str(error)}
                ),
            )
        except Stopped:
            return None


def service_of(target: Handler[Any] | Service) -> Service:
    """What `taskflux run` runs for a declaration: of a handler, a worker."""
    if isinstance(target, Service):
        return target
    return Service(target.name, partial(serve, target))


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
        database = Database(settings.postgres, pool_size=2, name=process.label, fixed_plans=True)
        await database.open()
        stack.push_async_callback(database.close)
        if not await _register(handler, database, process):
            return
        client = await stack.enter_async_context(connecting) if connecting else None
        accelerator = Accelerator(settings.redis)
        await accelerator.open()
        stack.push_async_callback(accelerator.close)
        if provider:
            metrics.show_provider(provider.name if section is not None else "notify")
        metrics.ADOPTED.zeros(handler.type)
        metrics.RATE_WAIT.zeros(provider.name if provider else handler.type)
        watch = CircuitWatch(Circuits(database))
        await stack.enter_async_context(process.background(watch.keep_fresh()))
        poison = PoisonOutlet(process, DeadLetters(database))
        stack.push_async_callback(poison.close)
        limiter = _limiter(provider, section, accelerator)
        gate = Gate(watch, handler.policy.provider, client, limiter)
        stack.enter_context(watched(handler, process.health))
        await _work(handler, process, database, gate, poison)


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


def _limiter(provider: Provider[Any] | None, section: BaseModel | None, accelerator: Accelerator) -> Limiter | None:
    """The turns of a provider whose settings name a rate."""
    rate = getattr(section, "rate", None)
    if provider is None or rate is None:
        return None
    return Limiter(provider.name, rate, accelerator)


async def _work(handler: Handler[Any], process: Process, database: Database, gate: Gate, poison: PoisonOutlet) -> None:
    """From the worker's first beat to the end of its lease."""
    settings = process.settings
    origin, image = settings.worker.origin, settings.worker.image or f"taskflux {VERSION}"
    row = WorkerRow(uuid7(), handler.name, process.label, os.getpid(), origin, handler.type, image)
    prefix = settings.kafka.topic_prefix
    source = Destination(task_topic(prefix, handler.type), task_group(prefix, handler.type))
    claims = Claims(database, row, source)
    executor = Executor(
        handler,
        gate,
        Lease(claims, settings.worker.lease_seconds),
        Outcomes(claims),
        settings.worker.concurrency or handler.concurrency,
    )
    process.health.stuck_for = lambda: executor.stuck_for
    process.health.patience = handler.policy.timeout  # then each of those attempts has had twice its time
    consumer = Consumer(settings.kafka, source.group, source.topic)
    registration = Registration(process, Tasks(database), settings.relay.grace)
    worker = Worker(process, consumer, executor, registration, poison)
    async with (
        process.background(worker.keep_lease()),
        process.background(worker.keep_claims()),
        process.background(_topic(handler, process, consumer)),
    ):
        await consumer.start()
        process.started()
        try:
            await worker.run()
        finally:
            with suppress(StoreError):  # it expires by itself then
                await claims.end()


async def _topic(handler: Handler[Any], process: Process, consumer: Consumer) -> None:
    """Make the type's topic if it is missing: a handler of one's own runs by being run.

    Where this is not allowed to us, `taskflux topics` does it with other credentials; the consumer waits meanwhile.
    """
    await consumer.missing.wait()
    while True:
        try:
            report = await ensure_topics(process.settings.kafka, [handler.type])
        except KafkaUnavailable as error:
            log.debug("waiting for Kafka", extra={"error": str(error)})
            await asyncio.sleep(TOPIC_AGAIN)
        else:
            for topic, reason in report.refused.items():
                log.warning("a topic is missing and cannot be created", extra={"topic": topic, "error": reason})
            return


async def _register(handler: Handler[Any], database: Database, process: Process) -> bool:
    """Make the type known, however long PostgreSQL is unavailable; false when told to drain meanwhile."""
    try:
        await until_available(
            lambda: TaskTypes(database).register(handler.task_type()),
            stop=process.draining,
            on_wait=lambda error: log.log(
                level_of(error), "the task type could not be registered yet", extra={"error": str(error)}
            ),
        )
    except Stopped:
        return False
    return True
