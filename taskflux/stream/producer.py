"""Sending records: a connection that is replaced when it fails, and batches for each partition."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError, UnknownTopicOrPartitionError

from taskflux.stream import internals
from taskflux.stream.client import TROUBLE, KafkaUnavailable, Link, connection_options, error_name
from taskflux.stream.envelope import OutRecord
from taskflux.stream.internals import topic_metadata
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import Place
from taskflux.telemetry import metrics

TOO_LARGE: Final = "TooLarge"
UNKNOWN_TOPIC: Final = "UnknownTopic"
_FIRST_DELAY: Final = 0.1
_MAX_DELAY: Final = 5.0
_FRAME: Final = 1024
"""Bytes that a record's frame may take beside its key, value and headers."""
_ASK_AGAIN, _TOO_OLD = 0.5, 1.0
"""Seconds after which topic ids are requested in the background, and after which sending waits for them.

An id that is older than the log costs a repeat: the auditor has the task published again.
"""


class Published(NamedTuple):
    """Kafka has the record. `log_id` is the topic's id from before the send: at worst that of an older log."""

    partition: int
    offset: int
    log_id: UUID


class NotPublished(NamedTuple):
    """Kafka did not confirm the record in time; it may still have it.

    `error` is a bounded name for metrics, `reason` a sentence. `TooLarge` is permanent, `UnknownTopic` lasts until the
    topic is created; everything else is worth another try.
    """

    error: str
    reason: str


Outcome = Published | NotPublished


class Producer:
    """Sends records; an error of Kafka's is an outcome, never an exception.

    `start` returns at once, whether Kafka is up or down: connecting goes on in the background. Safe for concurrent
    callers. The constructor raises OSError or ssl.SSLError if a PEM file is missing or broken.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._timeout = settings.produce_timeout
        self._max_bytes = settings.dead_letter_max_bytes
        connection_options(settings)  # which raises
        options = {
            "acks": "all",
            "enable_idempotence": settings.idempotent,
            "request_timeout_ms": int(self._timeout * 1000),
            "max_batch_size": settings.batch_bytes,
            "max_request_size": self._max_bytes + _FRAME,
        }
        self._connection = _Connection(options, settings)

    async def start(self) -> None:
        """Begin to connect."""
        self._connection.start()

    async def stop(self) -> None:
        """Stop, after waiting at most about `produce_timeout` for records that are being sent."""
        await self._connection.stop(self._timeout)

    @property
    def healthy(self) -> bool:
        """Whether publishing is worth a try: connected, and no send has failed since; recovers by itself."""
        return self._connection.producer is not None

    async def publish(self, records: Sequence[OutRecord]) -> list[Outcome]:
        """One outcome per record, in order, within `produce_timeout` seconds; at once while Kafka is known to be
        unreachable.
        """
        if not records:
            return []
        began = asyncio.get_running_loop().time()
        outcomes = await self._send(records, began + self._timeout)
        metrics.PRODUCE_SECONDS.labels().observe(asyncio.get_running_loop().time() - began)
        return outcomes

    async def _send(self, records: Sequence[OutRecord], deadline: float) -> list[Outcome]:
        try:
            async with asyncio.timeout_at(deadline):
                producer = self._connection.producer or await self._connection.wait()
        except (KafkaUnavailable, TimeoutError) as error:
            return [NotPublished("KafkaUnavailable", str(error) or "Kafka cannot be reached")] * len(records)
        since = time.monotonic()
        try:
            async with asyncio.timeout_at(deadline):
                topics = await self._connection.topics(producer, {record.topic for record in records})
        except (*TROUBLE, KafkaUnavailable) as error:
            self._connection.failed(producer, error, since)
            return [_not_published(error)] * len(records)
        outcomes: dict[int, Outcome] = {}
        accepted: list[tuple[int, OutRecord]] = []
        for index, record in enumerate(records):
            if record.topic not in topics:
                outcomes[index] = NotPublished(UNKNOWN_TOPIC, f"the topic {record.topic} does not exist: create it")
            elif record.size > self._max_bytes:
                reason = f"the record has {record.size} bytes, the limit is {self._max_bytes}"
                outcomes[index] = NotPublished(TOO_LARGE, reason)
            else:
                accepted.append((index, record))
        batches = fill(producer.create_batch, accepted, {name: topic.partitions for name, topic in topics.items()})
        await asyncio.gather(
            *(
                self._send_partition(producer, place, queue, topics[place[0]].log_id, deadline, outcomes)
                for place, queue in batches.items()
            )
        )
        return [outcomes[index] for index in range(len(records))]

    async def _send_partition(
        self,
        producer: AIOKafkaProducer,
        place: Place,
        batches: list[Batch],
        log_id: UUID,
        deadline: float,
        outcomes: dict[int, Outcome],
    ) -> None:
        topic, partition = place
        for batch in batches:
            since = time.monotonic()
            try:
                if producer.client.cluster.partitions_for_topic(topic) is None:
                    raise UnknownTopicOrPartitionError(topic)  # it was deleted; `send_batch` would create it
                async with asyncio.timeout_at(deadline):
                    sent = await (await producer.send_batch(batch.builder, topic, partition=partition))
            except TROUBLE as error:
                self._connection.failed(producer, error, since)
                outcomes.update(dict.fromkeys(batch.places, _not_published(error)))
            else:
                self._connection.confirmed()
                for offset, index in enumerate(batch.places, sent.offset):
                    outcomes[index] = Published(partition, offset, log_id)


@dataclass(slots=True)
class Batch:
    """A filled builder, and for each of its records its place in the caller's list."""

    builder: Any
    places: list[int] = field(default_factory=list)


def fill(
    create_builder: Callable[[], Any], records: Iterable[tuple[int, OutRecord]], partitions: Mapping[str, Sequence[int]]
) -> dict[Place, list[Batch]]:
    """(topic, partition) → batches in the order of `records`, which are given as (place, record).

    Keys are spread over the partitions by a CRC (no order is promised, and murmur2 in Python is slow). A record that is
    larger than a builder's limit is alone in its batch, so that a refusal affects no other.
    """
    queues: dict[Place, list[Batch]] = {}
    for place, (topic, key, value, headers) in records:
        among = partitions[topic]
        partition = random.choice(among) if key is None else among[zlib.crc32(key) % len(among)]
        queue, listed = queues.setdefault((topic, partition), []), list(headers)
        batch = queue[-1] if queue else None
        if batch is None or batch.builder.append(timestamp=None, key=key, value=value, headers=listed) is None:
            batch = Batch(create_builder())
            queue.append(batch)
            batch.builder.append(timestamp=None, key=key, value=value, headers=listed)
        batch.places.append(place)
    return queues


def _not_published(error: BaseException) -> NotPublished:
    if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
        return NotPublished(TOO_LARGE, "the topic refuses a record of this size: raise its max.message.bytes")
    return NotPublished(error_name(error), f"Kafka did not confirm the record ({error_name(error)})")


class _Topic(NamedTuple):
    """A topic's id, and the partitions that have a leader; all of them where none has."""

    log_id: UUID
    partitions: Sequence[int]


class _Connection:
    """One started AIOKafkaProducer at a time, made from `options` and the settings.

    An idempotent producer retries a failed batch for ever, and a refused one leaves a gap in its sequence numbers: so
    after any failure the producer is replaced.
    """

    def __init__(self, options: dict[str, Any], settings: KafkaSettings) -> None:
        self.producer: AIOKafkaProducer | None = None
        """Set while connected, and nothing has failed on this connection."""
        self._failures = 0
        """Consecutive failures; a confirmed send resets it."""
        self._options = options
        self._settings = settings
        self._connect_timeout = settings.request_timeout
        self._connecting, self._sending = Link(settings), Link(settings)
        self._reason = "the first connection to Kafka is not made yet"
        self._attempted = asyncio.Event()
        self._wanted = asyncio.Event()
        self._log_ids: dict[str, UUID] = {}
        self._asked = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._abandoned: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to connect."""
        self._wanted.set()
        self._task = asyncio.create_task(self._keep_connected(), name="kafka-producer-connect")

    async def stop(self, timeout: float) -> None:
        """Flush and close within about `timeout` seconds."""
        ending = [task for task in (self._task, self._asking) if task is not None]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        producer, self.producer = self.producer, None
        if producer is not None:
            try:
                async with asyncio.timeout(timeout):
                    await producer.flush()
            except TimeoutError:
                self._abandon(producer)
            else:
                await producer.stop()
        if self._abandoned:
            _, late = await asyncio.wait(self._abandoned, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def wait(self) -> AIOKafkaProducer:
        """The producer, after the current attempt to connect.

        Raises KafkaUnavailable at once if the last attempt failed and the next is not yet due.
        """
        await self._attempted.wait()
        if self.producer is None:
            raise KafkaUnavailable(self._reason)
        return self.producer

    async def topics(self, producer: AIOKafkaProducer, wanted: set[str]) -> dict[str, _Topic]:
        """Those of `wanted` that exist. Raises KafkaError, KafkaUnavailable.

        Read an id before sending, never after: then the record is never noted as part of a later log than the one that
        it is in.
        """
        age = asyncio.get_running_loop().time() - self._asked
        if age > _TOO_OLD or not wanted <= self._log_ids.keys():
            await self._ask(producer, wanted)
        elif age > _ASK_AGAIN and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask_again(producer), name="kafka-topic-ids")
        found = {topic: self._log_ids[topic] for topic in wanted if topic in self._log_ids}
        cluster = producer.client.cluster
        while any(cluster.partitions_for_topic(topic) is None for topic in found):
            await producer.client.force_metadata_update()
        return {
            topic: _Topic(
                log_id,
                sorted(cluster.available_partitions_for_topic(topic) or cluster.partitions_for_topic(topic)),
            )
            for topic, log_id in found.items()
        }

    async def _ask(self, producer: AIOKafkaProducer, wanted: set[str]) -> None:
        now = asyncio.get_running_loop().time()
        before = self._log_ids
        metadata = await topic_metadata(producer.client, wanted | before.keys())
        self._log_ids, self._asked = {topic: found.log_id for topic, found in metadata.items()}, now
        if any(before.get(topic, log_id) != log_id for topic, log_id in self._log_ids.items()):
            producer.client.force_metadata_update()  # the new topic may have other partitions and leaders

    async def _ask_again(self, producer: AIOKafkaProducer) -> None:
        since = time.monotonic()
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._ask(producer, set())
        except (*TROUBLE, KafkaUnavailable) as error:
            self.failed(producer, error, since)

    def confirmed(self) -> None:
        """A send was confirmed: the next failure is retried without delay."""
        self._failures = 0
        self._sending.works()

    def failed(self, producer: AIOKafkaProducer, error: BaseException, since: float) -> None:
        """Stop using `producer` after an attempt that began at `since` (monotonic) and failed; idempotent."""
        self._log_ids = {}
        if producer is not self.producer:
            return
        self.producer = None
        self._reason = f"Kafka did not accept a record: {self._sending.failed(error, since).reason}"
        self._attempted.clear()
        self._abandon(producer)
        self._wanted.set()

    async def _keep_connected(self) -> None:
        while True:
            await self._wanted.wait()
            if self._failures:
                self._attempted.set()  # meanwhile, `wait` raises at once
                delay = min(_FIRST_DELAY * 2.0 ** min(self._failures - 1, 10), _MAX_DELAY)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                self._attempted.clear()
            self._failures += 1
            self.producer = await self._connect()
            self._attempted.set()
            if self.producer is not None:
                self._wanted.clear()

    async def _connect(self) -> AIOKafkaProducer | None:
        # The credentials as they are now: they may have been renewed.
        options = connection_options(self._settings) | self._options
        producer, since = AIOKafkaProducer(**options), time.monotonic()
        try:
            async with asyncio.timeout(self._connect_timeout):
                await producer.start()
        except TROUBLE as error:
            self._reason = f"Kafka cannot be reached: {self._connecting.failed(error, since).reason}"
            await producer.stop()
            return None
        except asyncio.CancelledError:
            await producer.stop()
            raise
        self._connecting.works()
        metrics.OPENED.labels("kafka").inc()
        return producer

    def _abandon(self, producer: AIOKafkaProducer) -> None:
        task = asyncio.create_task(internals.abandon(producer), name="kafka-producer-close")
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
