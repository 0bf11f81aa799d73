"""Accepting tasks that other producers wrote to Kafka: each becomes one row, however often its record is delivered."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from uuid_utils.compat import uuid7

from taskflux.store.dead_letters import DeadLetter, DeadLetters
from taskflux.store.errors import RefusedData, Stopped, StoreError, level_of, until_available
from taskflux.store.tasks import ForeignTask, Known, Tasks
from taskflux.stream.envelope import (
    DeadPoison,
    DeadTask,
    Envelope,
    Foreign,
    OutRecord,
    Poison,
    PoisonClass,
    Record,
    decode_dead,
    encode_poison,
    record_identity,
    trace_of,
)
from taskflux.stream.producer import TOO_LARGE, NotPublished, Producer
from taskflux.stream.topics import dead_letter_topic
from taskflux.tasks.bounds import excess
from taskflux.tasks.fields import digest, read_fields
from taskflux.tasks.model import TaskType
from taskflux.telemetry import metrics, tracing
from taskflux.telemetry.tracing import UNTRACED
from taskflux.worker.process import Process

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Registered:
    """The results of foreign records: tasks at version 1, new (`fresh`) or accepted before, and poison.

    `later` counts those left to the relay, because they are not or may not be due. `keys` are the tasks' keys.
    """

    tasks: dict[UUID, Envelope] = field(default_factory=dict)
    fresh: set[UUID] = field(default_factory=set)
    keys: dict[UUID, str] = field(default_factory=dict)
    later: int = 0
    poison: list[tuple[Record, Poison]] = field(default_factory=list)


class Registration:
    """Registers foreign records as tasks; the relay leaves a new one to this process for `grace` seconds.

    `now` is this process's clock; used only to refuse times that make no sense.
    """

    def __init__(
        self,
        process: Process,
        store: Tasks,
        grace: float,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._process = process
        self._store = store
        self._grace = grace
        self._now = now

    async def register(
        self, records: Sequence[Foreign], types: Mapping[str, TaskType], *, publish: bool = True
    ) -> Registered | None:
        """Make these durable, however long PostgreSQL is unavailable; None if the process drains meanwhile.

        Args:
            types: each type in `records`.
            publish: false leaves the new ones to the relay at once.
        """
        registered = Registered()
        batch: dict[str, tuple[Foreign, ForeignTask]] = {}
        created: dict[UUID, tracing.Span] = {}
        for each in records:
            found = foreign_task(each, types[each.task_type], self._now())
            if isinstance(found, Poison):
                registered.poison.append((each.record, found))
                continue
            if tracing.on and each.traceparent is None:
                create = tracing.messaging("create", each.record.topic, "PRODUCER")
                created[found.id] = tracing.message(create, found.id, None)
                found = found._replace(traceparent=created[found.id].traceparent)
            _, first = batch.setdefault(found.identity, (each, found))
            if first is not found:
                _note(registered, each, found, Known(first.id, first.digest))
        try:
            known = await self._store_surely([found for _, found in batch.values()], self._grace if publish else 0.0)
        except Stopped:
            return None
        for each, found in batch.values():
            _note(registered, each, found, known.get(found.identity))
        for task in created.keys() & registered.fresh:  # the others existed: nothing was created
            created[task].end()
        return registered

    async def _store_surely(self, batch: Sequence[ForeignTask], grace: float) -> Mapping[str, Known]:
        if not batch:
            return {}
        try:
            return await until_available(
                lambda: self._store.register(batch, grace),
                stop=self._process.draining,
                on_wait=lambda error: log.log(
                    level_of(error), "foreign tasks could not be accepted yet", extra={"error": str(error)}
                ),
            )
        except RefusedData:
            if len(batch) == 1:
                return {}
            half = len(batch) // 2
            return {
                **await self._store_surely(batch[:half], grace),
                **await self._store_surely(batch[half:], grace),
            }


def foreign_task(foreign: Foreign, task_type: TaskType, now: datetime) -> ForeignTask | Poison:
    """The task of a foreign record, with an identity that every delivery of it shares.

    The identity is the producer's id within the type; without an id, the record's place, time and bytes. The fields
    mean the same as over HTTP. A record that comes after its `expiresAt` may be a repeat: it is accepted, and expires.
    """
    given, wrong = read_fields(foreign.fields, now, repeatable=True)
    if wrong:
        said = "; ".join(f"{name} {message}" for name, message in wrong)
        return Poison(PoisonClass.UNKNOWN_SHAPE, f"a field is not valid: {said}")
    if len(foreign.payload) > task_type.max_bytes:
        return Poison(PoisonClass.TOO_LARGE, excess(len(foreign.payload), task_type.max_bytes))
    record = foreign.record
    if foreign.task_id is not None:
        identity = f"id:{foreign.task_type}:{foreign.task_id}"
    else:
        place = (record.topic, record.partition, record.offset, record.timestamp)
        identity = record_identity(*place, record.key, record.value)
    metadata = given.get("metadata")
    return ForeignTask(
        identity,
        # Without fields, the digest of the payload alone: earlier releases ignored fields, and stored that.
        hashlib.sha256(foreign.digest + digest(task_type.name, None, given)).digest() if given else foreign.digest,
        uuid7(),
        task_type.name,
        foreign.payload,
        given.get("maxAttempts", task_type.max_attempts),
        foreign.traceparent or tracing.new_traceparent(),
        given.get("key"),
        given.get("scheduleAt"),
        given.get("delaySeconds", 0.0),
        given.get("expiresAt"),
        None if metadata is None else json.dumps(metadata, separators=(",", ":")),
    )


def _note(registered: Registered, foreign: Foreign, wanted: ForeignTask, known: Known | None) -> None:
    """Note the outcome of one record, whose identity is that of `known` in the store."""
    if known is None:
        poison = Poison(PoisonClass.INVALID_PAYLOAD, "PostgreSQL does not accept one of its values")
    elif known.digest != wanted.digest:
        poison = Poison(PoisonClass.ID_REUSED, "its taskId belongs to a task with another payload or other fields")
    else:
        outcome = "adopted" if known.fresh else "repeated"
        metrics.ADOPTED.labels(foreign.task_type, outcome).inc()
        # The relay publishes a delayed task, even if its record is delivered again: when it is due is not known here.
        if known.due_now if known.fresh else not wanted.waits:
            registered.tasks.setdefault(known.task, Envelope(known.task, foreign.task_type, 1, wanted.traceparent))
        else:
            registered.later += 1
        if known.fresh:
            registered.fresh.add(known.task)
        if wanted.key is not None:
            registered.keys[known.task] = wanted.key
        return
    metrics.ADOPTED.labels(foreign.task_type, "poison").inc()
    registered.poison.append((foreign.record, poison))


WAIT = 1.0
"""Seconds between two tries while Kafka is unreachable."""


class PoisonOutlet:
    """Sends poison messages to the dead-letter topic; those that are too large for it go directly into the table."""

    def __init__(self, process: Process, letters: DeadLetters) -> None:
        self._process = process
        self._letters = letters
        self._producer: Producer | None = None
        metrics.POISON.zeros()

    async def close(self) -> None:
        """Stop the producer, if poison ever came."""
        if self._producer is not None:
            await self._producer.stop()

    async def put_aside(self, poison: Sequence[tuple[Record, Poison]]) -> bool:
        """Make these durable, however long it takes; false if the process drains meanwhile."""
        left = list(poison)
        for _, found in left:
            metrics.POISON.labels(found.error_class).inc()
            log.warning("a record is not a task", extra={"error_class": found.error_class})
        while left:
            left = await self._try(left)
            if left:
                await self._process.pause(WAIT)
                if self._process.draining.is_set():
                    return False
        return True

    async def _try(self, poison: list[tuple[Record, Poison]]) -> list[tuple[Record, Poison]]:
        if self._producer is None:
            self._producer = Producer(self._process.settings.kafka)
            await self._producer.start()
        topic = dead_letter_topic(self._process.settings.kafka.topic_prefix)
        send = tracing.messaging("send", topic, "PRODUCER")
        with tracing.batch(send, [trace_of(each.headers) for each, _ in poison]) if tracing.on else UNTRACED:
            outcomes = await self._producer.publish([OutRecord(topic, *encode_poison(*each)) for each in poison])
        refused = [
            (each, outcome) for each, outcome in zip(poison, outcomes, strict=True) if isinstance(outcome, NotPublished)
        ]
        too_large = [each for each, outcome in refused if outcome.error == TOO_LARGE]
        left = [each for each, outcome in refused if outcome.error != TOO_LARGE]
        return left if await self._store(too_large) else [*left, *too_large]

    async def _store(self, poison: list[tuple[Record, Poison]]) -> bool:
        letters = [
            dead_letter(record._replace(headers=encoded.headers, value=encoded.value))
            for record, found in poison
            if (encoded := encode_poison(record, found))
        ]
        try:
            await self._letters.add(letters)
        except StoreError as error:
            log.log(level_of(error), "a dead letter could not be stored yet", extra={"error": str(error)})
            return False
        return True


def dead_letter(record: Record) -> DeadLetter:
    """What a record on the dead-letter topic becomes in the table."""
    origin = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
    }
    match decode_dead(record):
        case DeadTask() as task:
            return DeadLetter(
                uuid7(),
                f"task:{task.task_id}:{task.version}",
                task.error_class,
                "its reason was on the task's row, which has moved on",
                origin,
                task.task_id,
                task.version,
                task.task_type,
                task.attempts,
                task.traceparent,
            )
        case DeadPoison(key, value, headers, place, error_class, reason):
            origin = {
                "topic": place.topic,
                "partition": place.partition,
                "offset": place.offset,
                "timestamp": place.timestamp,
            }
            return DeadLetter(
                uuid7(),
                record_identity(place.topic, place.partition, place.offset, place.timestamp, key, value),
                error_class,
                reason,
                origin,
                traceparent=trace_of(headers),
                record_key=key,
                record_value=value,
                record_headers=headers,
            )
