"""Records sorted into batches, one queue of them per partition."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from taskflux.stream.client import TROUBLE, KafkaUnavailable, connection_options, error_name
from taskflux.stream.envelope import OutRecord
from taskflux.stream.protocol import topic_metadata
from taskflux.stream.settings import KafkaSettings
from taskflux.telemetry import metrics


@dataclass(slots=True)
class Batch:
    """A filled builder, and for each of its records the caller's place."""

    builder: Any
    places: list[int] = field(default_factory=list)


def partition_of(key: bytes | None, partitions: list[int]) -> int:
    """The partition of a key, spread evenly (a CRC: ours promise no order, and a murmur2 in Python is slow)."""
    return random.choice(partitions) if key is None else partitions[zlib.crc32(key) % len(partitions)]


def fill(
    create_builder: Callable[[], Any], records: Iterable[tuple[int, OutRecord]], partitions: dict[str, list[int]]
) -> dict[tuple[str, int], list[Batch]]:
    """(topic, partition) → batches in the order of `records`, which are given as (place, record).

    A record that is larger than a builder's limit is alone in its batch, so that a refusal hits no other.
    """
    queues: dict[tuple[str, int], list[Batch]] = {}
    for place, record in records:
        queue = queues.setdefault((record.topic, partition_of(record.key, partitions[record.topic])), [])
        if not queue or not _append(queue[-1], place, record):
            queue.append(Batch(create_builder()))
            _append(queue[-1], place, record)
    return queues


def _append(batch: Batch, place: int, record: OutRecord) -> bool:
    added = batch.builder.append(timestamp=None, key=record.key, value=record.value, headers=list(record.headers))
    if added is None:
        return False
    batch.places.append(place)
    return True


MAX_AGE = 1.0
"""Seconds. An id that is older than the log it is noted for is harmless: the auditor sends the task again."""


class LogIds:
    """The ids of the topics that a producer sends to, asked over its own connection.

    Take an id before sending, never after: then a record that lands in a recreated topic is never noted as part of
    a log that came later still.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[UUID, float]] = {}

    async def get(self, client: AIOKafkaClient, topics: Iterable[str]) -> dict[str, UUID]:
        """The ids of those of `topics` that exist. Raises KafkaError, KafkaUnavailable."""
        wanted = set(topics)
        oldest = time.monotonic() - MAX_AGE
        stale = {topic for topic in wanted if self._known.get(topic, (None, 0.0))[1] < oldest}
        if stale:
            await self._refresh(client, stale)
        return {topic: self._known[topic][0] for topic in wanted if topic in self._known}

    def forget(self) -> None:
        """Ask again next time: something has failed."""
        self._known.clear()

    async def _refresh(self, client: AIOKafkaClient, topics: set[str]) -> None:
        found = await topic_metadata(client, topics)
        now = time.monotonic()
        for topic in topics:
            before = self._known.pop(topic, None)
            if topic in found:
                self._known[topic] = (found[topic].log_id, now)
                if before is not None and before[0] != found[topic].log_id:
                    client.force_metadata_update()  # the new topic may have other partitions and leaders


log = logging.getLogger(__name__)

_FIRST_DELAY = 0.1
_MAX_DELAY = 5.0


class ProducerConnection:
    """One started AIOKafkaProducer at a time, made from `options`; `connect_timeout` in seconds.

    A batch that failed is retried by an idempotent producer for ever, and one that was refused leaves a gap in its
    sequence numbers: after any failure the producer is thrown away and a fresh one takes its place.
    """

    def __init__(self, options: dict[str, Any], connect_timeout: float) -> None:
        self._options = options
        self._connect_timeout = connect_timeout
        self._producer: AIOKafkaProducer | None = None
        self._reason = "Kafka has not been asked yet"
        self._attempted = asyncio.Event()
        self._wanted = asyncio.Event()
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._abandoned: set[asyncio.Task[None]] = set()

    @property
    def up(self) -> bool:
        """Connected, and nothing has failed on this connection."""
        return self._producer is not None

    def start(self) -> None:
        """Begin to connect."""
        self._wanted.set()
        self._task = asyncio.create_task(self._keep_connected(), name="kafka-producer-connect")

    async def stop(self, timeout: float) -> None:
        """Flush and close within about `timeout` seconds."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        producer, self._producer = self._producer, None
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

    async def current(self) -> AIOKafkaProducer:
        """The producer; waits for an attempt to connect that is under way.

        Raises KafkaUnavailable at once while the last attempt has failed and the next is not yet due.
        """
        if self._producer is None:
            await self._attempted.wait()
        if self._producer is None:
            raise KafkaUnavailable(self._reason)
        return self._producer

    def succeeded(self) -> None:
        """A send was confirmed: the next failure is met without delay."""
        self._failures = 0

    def failed(self, producer: AIOKafkaProducer, error: BaseException) -> None:
        """`producer` is not to be used any more; idempotent."""
        if producer is not self._producer:
            return
        self._producer = None
        self._reason = f"Kafka did not take a record ({error_name(error)})"
        self._attempted.clear()
        self._abandon(producer)
        self._wanted.set()

    async def _keep_connected(self) -> None:
        while True:
            await self._wanted.wait()
            if self._failures:
                self._attempted.set()  # whoever asks meanwhile is told at once
                await asyncio.sleep(_backoff(self._failures))
                self._attempted.clear()
            self._failures += 1
            self._producer = await self._connect()
            self._attempted.set()
            if self._producer is not None:
                self._wanted.clear()

    async def _connect(self) -> AIOKafkaProducer | None:
        producer = AIOKafkaProducer(**self._options)
        try:
            async with asyncio.timeout(self._connect_timeout):
                await producer.start()
        except TROUBLE as error:
            self._reason = f"Kafka cannot be reached ({error_name(error)})"
            await producer.stop()
            return None
        except asyncio.CancelledError:
            await producer.stop()
            raise
        metrics.OPENED.labels("kafka").inc()
        return producer

    def _abandon(self, producer: AIOKafkaProducer) -> None:
        task = asyncio.create_task(_close(producer), name="kafka-producer-close")
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)


async def _close(producer: AIOKafkaProducer) -> None:
    """Close without a flush: `producer.stop()` waits for batches that may never be confirmed."""
    producer._closed = True
    try:
        await producer._sender.close()
    except TROUBLE as error:
        log.debug("the sender of an abandoned producer ended with %s", error_name(error))
    finally:
        await producer.client.close()


def _backoff(failures: int) -> float:
    """Seconds before the next attempt: exponential, with jitter."""
    return min(_FIRST_DELAY * 2.0 ** min(failures - 1, 10), _MAX_DELAY) * random.uniform(0.5, 1.0)


TOO_LARGE = "TooLarge"
UNKNOWN_TOPIC = "UnknownTopic"
_MAX_IN_FLIGHT = 4
_FRAME = 1024
"""Bytes that a record's frame may take beside its key, value and headers."""


class Published(NamedTuple):
    """Kafka has the record. `log_id` is the topic's id from before the send: at worst that of an older log."""

    partition: int
    offset: int
    log_id: UUID


class NotPublished(NamedTuple):
    """Kafka did not confirm the record in time; it may have it all the same.

    `error` is a bounded name for metrics, `reason` a sentence. `TooLarge` never gets better by itself, `UnknownTopic`
    not before the topic is created; everything else is worth another try.
    """

    error: str
    reason: str


Outcome = Published | NotPublished


class Producer:
    """Sends records; Kafka's trouble is an answer, never an exception.

    `start` returns at once, Kafka up or down: connecting goes on in the background. Safe for concurrent callers, whose
    records share batches. Raises OSError or ssl.SSLError at
    construction where a PEM file is missing or broken.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._timeout = settings.produce_timeout
        self._max_bytes = settings.dead_letter_max_bytes
        options = connection_options(settings) | {
            "acks": "all",
            "enable_idempotence": settings.idempotent,
            "request_timeout_ms": int(self._timeout * 1000),
            "max_batch_size": settings.batch_bytes,
            "max_request_size": self._max_bytes + _FRAME,
        }
        self._connection = ProducerConnection(options, connect_timeout=settings.request_timeout)
        self._log_ids = LogIds()
        self._waiting: list[_Call] = []
        self._flushes: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to connect."""
        self._connection.start()

    async def stop(self) -> None:
        """Waits at most about `produce_timeout` for what is on its way."""
        if self._flushes:
            await asyncio.wait(self._flushes, timeout=self._timeout)
        await self._connection.stop(self._timeout)

    @property
    def healthy(self) -> bool:
        """Whether publishing is worth a try: connected, and no send has failed since; mends itself."""
        return self._connection.up

    async def publish(self, records: Sequence[OutRecord]) -> list[Outcome]:
        """One outcome per record, in order, within `produce_timeout` seconds; at once while Kafka is known away."""
        if not records:
            return []
        call = _Call(records)
        self._waiting.append(call)
        self._pump()
        try:
            await asyncio.wait((call.done,), timeout=self._timeout)
        finally:
            expired = not call.done.done()
            call.done.cancel()
        if not expired:
            call.done.result()
        late = NotPublished("Timeout", f"Kafka did not confirm the record within {self._timeout:g} s")
        return [outcome or late for outcome in call.outcomes]

    def _pump(self) -> None:
        """Send what waits, unless enough is in the air: then it gathers, and goes out together."""
        if not self._waiting or len(self._flushes) >= _MAX_IN_FLIGHT:
            return
        calls, self._waiting = [call for call in self._waiting if not call.done.done()], []
        task = asyncio.create_task(self._flush(calls), name="kafka-flush")
        self._flushes.add(task)
        task.add_done_callback(lambda done: self._flushed(done, calls))

    def _flushed(self, task: asyncio.Task[None], calls: list[_Call]) -> None:
        self._flushes.discard(task)
        error = None if task.cancelled() else task.exception()
        for call in calls:
            if not call.done.done():
                if error is not None:
                    call.done.set_exception(error)
                else:
                    call.done.set_result(None)
        self._pump()

    async def _flush(self, calls: list[_Call]) -> None:
        places = [(call, index) for call in calls for index in range(len(call.records))]
        records = [call.records[index] for call, index in places]
        began = asyncio.get_running_loop().time()
        outcomes = await self._send(records)
        metrics.PRODUCE_SECONDS.labels().observe(asyncio.get_running_loop().time() - began)
        for (call, index), outcome in zip(places, outcomes, strict=True):
            call.outcomes[index] = outcome

    async def _send(self, records: list[OutRecord]) -> list[Outcome | None]:
        outcomes: list[Outcome | None] = [None] * len(records)
        # Before the callers' own: when they hear of a failure, `healthy` has heard of it too.
        deadline = asyncio.get_running_loop().time() + 0.95 * self._timeout
        try:
            async with asyncio.timeout_at(deadline):
                producer = await self._connection.current()
        except (KafkaUnavailable, TimeoutError) as error:
            return [NotPublished("KafkaUnavailable", str(error) or "Kafka cannot be reached")] * len(records)
        try:
            async with asyncio.timeout_at(deadline):
                log_ids = await self._log_ids.get(producer.client, {record.topic for record in records})
                partitions = {topic: await _partitions(producer, topic) for topic in log_ids}
        except (*TROUBLE, KafkaUnavailable) as error:
            self._failed(producer, error)
            return [_not_published(error)] * len(records)
        for index, record in enumerate(records):
            outcomes[index] = self._refusal(record, log_ids)
        accepted = [(index, record) for index, record in enumerate(records) if outcomes[index] is None]
        batches = fill(producer.create_batch, accepted, partitions)
        await asyncio.gather(
            *(
                self._send_partition(producer, place, queue, outcomes, log_ids, deadline)
                for place, queue in batches.items()
            )
        )
        return outcomes

    async def _send_partition(
        self,
        producer: AIOKafkaProducer,
        place: tuple[str, int],
        batches: list[Batch],
        outcomes: list[Outcome | None],
        log_ids: dict[str, UUID],
        deadline: float,
    ) -> None:
        topic, partition = place
        for batch in batches:
            try:
                async with asyncio.timeout_at(deadline):
                    sent = await (await producer.send_batch(batch.builder, topic, partition=partition))
            except TROUBLE as error:
                self._failed(producer, error)
                for index in batch.places:
                    outcomes[index] = _not_published(error)
            else:
                self._connection.succeeded()
                for offset, index in enumerate(batch.places, sent.offset):
                    outcomes[index] = Published(partition, offset, log_ids[topic])

    def _refusal(self, record: OutRecord, log_ids: dict[str, UUID]) -> NotPublished | None:
        if record.topic not in log_ids:
            return NotPublished(UNKNOWN_TOPIC, f"the topic {record.topic} does not exist: create it")
        if record.size > self._max_bytes:
            return NotPublished(TOO_LARGE, f"the record has {record.size} bytes, the limit is {self._max_bytes}")
        return None

    def _failed(self, producer: AIOKafkaProducer, error: BaseException) -> None:
        self._log_ids.forget()
        self._connection.failed(producer, error)


class _Call:
    """One caller's records, and where their outcomes go."""

    __slots__ = ("done", "outcomes", "records")

    def __init__(self, records: Sequence[OutRecord]) -> None:
        self.records = records
        self.outcomes: list[Outcome | None] = [None] * len(records)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


async def _partitions(producer: AIOKafkaProducer, topic: str) -> list[int]:
    """The partitions that have a leader; all of them where none has."""
    everyone = await producer.partitions_for(topic)
    return sorted(producer.client.cluster.available_partitions_for_topic(topic) or everyone)


def _not_published(error: BaseException) -> NotPublished:
    if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
        return NotPublished(TOO_LARGE, "the topic takes no record of this size: raise its max.message.bytes")
    return NotPublished(error_name(error), f"Kafka did not confirm the record ({error_name(error)})")
