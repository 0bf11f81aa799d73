"""A producer that is connected in the background, and replaced after it has failed."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

from aiokafka import AIOKafkaProducer

from taskflux.stream.client import connected
from taskflux.stream.errors import TROUBLE, KafkaUnavailable, error_name

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
        connected()
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
