"""Sending records, each with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple
from uuid import UUID

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from taskflux.stream.batches import Batch, fill
from taskflux.stream.client import connection_options
from taskflux.stream.connection import ProducerConnection
from taskflux.stream.errors import TROUBLE, KafkaUnavailable, error_name
from taskflux.stream.log_ids import LogIds
from taskflux.stream.record import OutRecord
from taskflux.stream.settings import KafkaSettings

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
    records share batches. `observe` is told the seconds that each batch took. Raises OSError or ssl.SSLError at
    construction where a PEM file is missing or broken.
    """

    def __init__(self, settings: KafkaSettings, observe: Callable[[float], None] = lambda seconds: None) -> None:
        self._observe = observe
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
        self._observe(asyncio.get_running_loop().time() - began)
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
