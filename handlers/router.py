"""router: accepts the tasks that other producers write to one topic of mixed types, and publishes each to its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

from taskflux.store.database import Database
from taskflux.store.dead_letters import DeadLetters
from taskflux.store.errors import Stopped, StoreError, level_of, until_available
from taskflux.store.publishing import Circuits, PendingPublish, Publishing
from taskflux.store.tasks import Tasks, TaskTypes
from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import Envelope, Foreign, Poison, PoisonClass, Record, decode
from taskflux.stream.producer import Producer
from taskflux.stream.topics import is_own_topic, router_group
from taskflux.tasks.bounds import LARGE
from taskflux.tasks.model import TaskType
from taskflux.telemetry import metrics
from taskflux.worker.circuits import CircuitWatch
from taskflux.worker.foreign import PoisonOutlet, Registered, Registration
from taskflux.worker.process import Process, service
from taskflux.worker.publisher import Publisher
from taskflux.worker.settings import WrongSettings

log = logging.getLogger(__name__)

MAX_RECORDS: Final = 500
FETCH: Final = 1.0
ASK_AGAIN: Final = 1.0
"""Seconds after which an unknown type is looked up again."""


@service("router")
async def router(process: Process) -> None:
    """Accept the tasks in the topic until the process drains.

    Raises:
        WrongSettings: the topic is not set, or is one of ours.
    """
    settings = process.settings
    topic = _topic(process)
    prefix = settings.kafka.topic_prefix
    async with AsyncExitStack() as stack:
        database = Database(settings.postgres, pool_size=2, name=process.label)
        await database.open()
        stack.push_async_callback(database.close)
        producer = Producer(settings.kafka)
        await producer.start()
        stack.push_async_callback(producer.stop)
        watch = CircuitWatch(Circuits(database))
        await stack.enter_async_context(process.background(watch.keep_fresh()))
        poison = PoisonOutlet(process, DeadLetters(database))
        stack.push_async_callback(poison.close)
        consumer = Consumer(settings.kafka, router_group(prefix), topic)
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        publisher = Publisher(producer, Publishing(database, settings.relay.grace), prefix)
        registration = Registration(process, Tasks(database), settings.relay.grace)
        types = Types(process, TaskTypes(database))
        await stack.enter_async_context(process.background(types.begin()))
        route = Router(process, types, registration, publisher, watch, poison)
        process.started()
        while not process.draining.is_set():
            records = await consumer.fetch(MAX_RECORDS, FETCH)
            registered = await route.take(records) if records else None
            if registered is not None:
                consumer.note_done(records)
                await route.publish(registered)


def _topic(process: Process) -> str:
    topic, prefix = process.settings.router.topic, process.settings.kafka.topic_prefix
    if topic is None:
        raise WrongSettings("TASKFLUX_ROUTER__TOPIC is not set: set it to the topic, or use --topic")
    if is_own_topic(prefix, topic):
        raise WrongSettings(
            f"TASKFLUX_ROUTER__TOPIC is {topic!r}, a topic of TaskFlux's own: the handler of its type"
            " accepts other producers' tasks there"
        )
    return topic


class Types:
    """The registered types; one that is missing is read again before it counts as unknown."""

    def __init__(self, process: Process, source: TaskTypes) -> None:
        self._process = process
        self._source = source
        self._known: Mapping[str, TaskType] = {}
        self._read_at = float("-inf")

    async def begin(self) -> None:
        """Read them for the first time; nothing waits for it."""
        try:
            await self._read()
        except StoreError as error:
            _log_unread(error)

    async def _read(self) -> None:
        """Read them. StoreError: what was known is kept."""
        self._known, self._read_at = await self._source.all(), asyncio.get_running_loop().time()
        metrics.ADOPTED.zeros(self._known)

    async def of(self, names: set[str]) -> Mapping[str, TaskType] | None:
        """All types, read again where one of `names` is missing; None if the process drains before that succeeds."""
        if names - self._known.keys() and asyncio.get_running_loop().time() - self._read_at >= ASK_AGAIN:
            try:
                await until_available(
                    self._read,
                    retry=(StoreError,),
                    stop=self._process.draining,
                    pauses=(ASK_AGAIN, ASK_AGAIN),
                    on_wait=_log_unread,
                )
            except Stopped:
                return None
        return self._known


def _log_unread(error: Exception) -> None:
    log.log(level_of(error), "the task types could not be read yet", extra={"error": str(error)})


class Router:
    """Turns records of a topic of mixed types into rows of the outbox."""

    def __init__(
        self,
        process: Process,
        types: Types,
        registration: Registration,
        publisher: Publisher,
        circuits: CircuitWatch,
        poison: PoisonOutlet,
    ) -> None:
        self._process = process
        self._types = types
        self._registration = registration
        self._publisher = publisher
        self._circuits = circuits
        self._poison = poison
        self._ours = False

    async def take(self, records: Sequence[Record]) -> Registered | None:
        """Move poison messages to the dead letters and make the rest durable; None if the process drains meanwhile."""
        size = sum(len(record.value or b"") for record in records)
        foreign, poison = await asyncio.to_thread(self._sort, records) if size > LARGE else self._sort(records)
        types = await self._types.of({each.task_type for each in foreign})
        if types is None:
            return None
        for each in foreign:
            if each.task_type not in types:
                said = f"no worker has registered the task type {each.task_type!r}"
                poison.append((each.record, Poison(PoisonClass.UNKNOWN_TYPE, said)))
        known = [each for each in foreign if each.task_type in types]
        # One decision for the whole batch: what may not be published now is left to the relay.
        self._ours = self._publisher.healthy and all(
            self._circuits.flowing(types[each.task_type].provider) for each in known
        )
        registered = await self._registration.register(known, types, publish=self._ours)
        if registered is None or not await self._poison.put_aside([*poison, *registered.poison]):
            return None
        return registered

    async def publish(self, registered: Registered) -> None:
        """Publish what was just accepted; what Kafka does not accept stays in the outbox."""
        if not self._ours:
            return
        due = [
            PendingPublish(task, envelope.task_type, envelope.version, registered.keys.get(task), envelope.traceparent)
            for task, envelope in registered.tasks.items()
            if task in registered.fresh
        ]
        try:
            await self._publisher.publish(due)
        except StoreError as error:
            log.warning("published tasks are not confirmed: the relay will", extra={"error": str(error)})

    def _sort(self, records: Sequence[Record]) -> tuple[list[Foreign], list[tuple[Record, Poison]]]:
        foreign: list[Foreign] = []
        poison: list[tuple[Record, Poison]] = []
        for record in records:
            match decode(record, max_bytes=self._process.settings.kafka.max_record_bytes):
                case Foreign() as found:
                    foreign.append(found)
                case Poison() as found:
                    poison.append((record, found))
                case Envelope():
                    said = "it has no payload, and claim checks are only valid in TaskFlux's own topics"
                    poison.append((record, Poison(PoisonClass.UNKNOWN_SHAPE, said)))
        return foreign, poison
