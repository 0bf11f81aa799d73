"""Past a record that the client cannot parse, so that it does not stop its partition."""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import UnsupportedCodecError

from taskflux.stream.progress import Progress

UNREADABLE = (UnicodeDecodeError, UnsupportedCodecError)
"""What `getmany` raises for a header whose name is not UTF-8, or for a batch in a codec that is not installed; it
would raise it for ever."""

Skipped = tuple[str, int, int, str]
"""Topic, partition, offset, and why the record cannot be parsed."""

_WAIT_MS = 500


async def rewind(consumer: AIOKafkaConsumer, progress: Progress) -> None:
    """Back to behind what has been handed out: a `getmany` that raises forgets what it took from other partitions."""
    for tp in consumer.assignment():
        position = progress.position((tp.topic, tp.partition))
        if position is None:
            position = await consumer.committed(tp)
        if position is None:
            await consumer.seek_to_beginning(tp)
        else:
            consumer.seek(tp, position)


async def step_over(consumer: AIOKafkaConsumer, max_records: int) -> tuple[list[Any], list[Skipped]]:
    """Take records one by one up to the one at fault, in every partition, and seek behind it.

    Returns the client's records on the way and what was stepped over. Raises KafkaError; then, and when it is
    cancelled, what it has taken is lost: rejoin.
    """
    records: list[Any] = []
    skipped: list[Skipped] = []
    for tp in consumer.assignment():
        while len(records) < max_records:
            try:
                found = await consumer.getmany(tp, timeout_ms=_WAIT_MS, max_records=1)
            except UNREADABLE as error:
                skipped.append(await _skip(consumer, tp, error))
                break
            if not found:
                break
            records.extend(found[tp])
    return records, skipped


async def _skip(consumer: AIOKafkaConsumer, tp: TopicPartition, error: Exception) -> Skipped:
    offset = await consumer.position(tp)
    consumer.seek(tp, offset + 1)
    return tp.topic, tp.partition, offset, f"the client cannot parse the record: {error}"
