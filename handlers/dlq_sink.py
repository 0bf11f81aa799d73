"""dlq-sink: moves dead letters from `tasks.dlq` into the table where a person finds them.

It never writes to the topic.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from uuid import UUID

from taskflux.store.database import Database
from taskflux.store.dead_letters import DeadLetter, DeadLetters
from taskflux.store.errors import RefusedData
from taskflux.store.group_commit import GroupCommit
from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import Record
from taskflux.stream.topics import dead_letter_group, dead_letter_topic
from taskflux.telemetry import metrics, tracing
from taskflux.telemetry.tracing import UNTRACED, Destination
from taskflux.upkeep.measuring import DLQ
from taskflux.worker.foreign import dead_letter
from taskflux.worker.process import Process, service

log = logging.getLogger(__name__)

MAX_RECORDS = 200


@service("dlq-sink")
async def dlq_sink(process: Process) -> None:
    """Store dead letters until the process drains."""
    settings = process.settings
    prefix = settings.kafka.topic_prefix
    async with AsyncExitStack() as stack:
        database = Database(settings.postgres, pool_size=1, name=process.label)
        await database.open()
        stack.push_async_callback(database.close)
        consumer = Consumer(settings.kafka, dead_letter_group(prefix), dead_letter_topic(prefix))
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        metrics.CONCURRENCY.labels(DLQ).set(1)
        metrics.CLAIMED.labels(DLQ)
        metrics.DEAD_LETTERS.zeros()
        process.started()
        letters = DeadLetters(database)
        while not process.draining.is_set():
            records = await consumer.fetch(MAX_RECORDS, 1.0)
            if records and await _keep(records, letters, process):
                metrics.CLAIMED.labels(DLQ).inc(len(records))
                consumer.note_done(records)


async def _keep(records: Sequence[Record], letters: DeadLetters, process: Process) -> bool:
    """Store these, however long PostgreSQL is away; false when told to drain meanwhile."""

    prefix = process.settings.kafka.topic_prefix
    source = Destination(dead_letter_topic(prefix), dead_letter_group(prefix))

    async def add(batch: Sequence[DeadLetter]) -> Sequence[None]:
        with tracing.batch(source.store, [letter.traceparent for letter in batch]) if tracing.on else UNTRACED:
            stored = await letters.add(batch)
        _count(stored)
        return [None] * len(batch)

    # A record that PostgreSQL refuses is halved out of its batch.
    commit: GroupCommit[DeadLetter, None] = GroupCommit(add)
    storing = asyncio.create_task(_store(commit, [dead_letter(record) for record in records]))
    draining = asyncio.create_task(process.draining.wait())
    await asyncio.wait([storing, draining], return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    if not storing.done():
        storing.cancel()
        return False
    await storing
    return True


async def _store(commit: GroupCommit[DeadLetter, None], letters: Sequence[DeadLetter]) -> None:
    try:
        await asyncio.gather(*[commit.submit(letter, letter.identity) for letter in letters])
    except RefusedData as error:
        # Bytes that no column takes cannot occur: bytea takes all of them, and texts were made storable.
        log.error("a dead letter cannot be stored and stays in its topic", extra={"error_class": type(error).__name__})
        raise


def _count(stored: Mapping[UUID, str]) -> None:
    for error_class in stored.values():
        metrics.DEAD_LETTERS.labels(metrics.error_class(error_class)).inc()
