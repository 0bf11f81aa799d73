"""Records that are no task: in the dead letters, untouched, before Kafka may forget them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from uuid_utils.compat import uuid7

from taskflux.store.dead_letters import DeadLetter, DeadLetters
from taskflux.store.errors import StoreBusy, StoreUnavailable
from taskflux.stream.dead import DeadPoison, DeadTask, decode_dead, encode_poison
from taskflux.stream.envelope import Poison, trace_of
from taskflux.stream.identity import record_identity
from taskflux.stream.producer import TOO_LARGE, NotPublished, Producer
from taskflux.stream.record import OutRecord, Record
from taskflux.stream.topics import dead_letter_topic
from taskflux.telemetry import message_spans, metrics, zeros
from taskflux.worker.process import Process

log = logging.getLogger(__name__)

WAIT = 1.0
"""Seconds between two tries while Kafka is away."""


class PoisonOutlet:
    """Sends poison to the dead-letter topic; what no topic takes (too large) goes straight into the table."""

    def __init__(self, process: Process, letters: DeadLetters) -> None:
        self._process = process
        self._letters = letters
        self._producer: Producer | None = None
        zeros.of_poison()

    async def close(self) -> None:
        """Stop the producer, if poison ever came."""
        if self._producer is not None:
            await self._producer.stop()

    async def put_aside(self, poison: Sequence[tuple[Record, Poison]]) -> bool:
        """Make these durable, however long it takes; false when told to drain meanwhile."""
        left = list(poison)
        for _, found in left:
            metrics.POISON.labels(found.error_class).inc()
            log.warning("a record is no task", extra={"error_class": found.error_class})
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
        with message_spans.putting_aside(topic, (trace_of(record.headers) for record, _ in poison)):
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
        except (StoreUnavailable, StoreBusy) as error:
            log.warning("a dead letter could not be stored yet", extra={"error": str(error)})
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
