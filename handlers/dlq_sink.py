"""dlq-sink: moves dead letters from the topic `tasks.dlq` into their table.

It never writes to the topic.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from taskflux.store.database import Database
from taskflux.store.dead_letters import DeadLetters
from taskflux.stream.consumer import Consumer
from taskflux.stream.topics import dead_letter_group, dead_letter_topic
from taskflux.telemetry import metrics
from taskflux.telemetry.tracing import Destination
from taskflux.upkeep.measuring import DLQ
from taskflux.worker.foreign import dead_letter
from taskflux.worker.process import Process, service

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
        source = Destination(dead_letter_topic(prefix), dead_letter_group(prefix))
        consumer = Consumer(settings.kafka, source.group, source.topic)
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        metrics.CONCURRENCY.labels(DLQ).set(1)
        metrics.CLAIMED.labels(DLQ)
        metrics.DEAD_LETTERS.zeros()
        process.started()
        dead_letters = DeadLetters(database)
        while not process.draining.is_set():
            records = await consumer.fetch(MAX_RECORDS, 1.0)
            # Retries while PostgreSQL is unavailable. What a drain interrupts is not committed, and is read again.
            if records and await process.wait(dead_letters.keep([dead_letter(record) for record in records], source)):
                metrics.CLAIMED.labels(DLQ).inc(len(records))
                consumer.note_done(records)
