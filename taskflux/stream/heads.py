"""When the records were written that groups take next: the head of one batch a partition."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from taskflux.stream.metadata import topic_metadata
from taskflux.stream.offsets import TopicPartition

_WAIT: Final = 200
"""Milliseconds that the broker may take to find the record, which is there: the embedded one gives up within them."""
_READ_UNCOMMITTED: Final = 0
_WHEN_APPENDED: Final = 1
"""The type of a timestamp that the broker has set, and not who wrote the record."""


async def written_at(client: AIOKafkaClient, heads: Mapping[TopicPartition, int]) -> dict[TopicPartition, float]:
    """Partition → when its record at that offset was written (seconds since 1970), as its timestamp says.

    Left out where there is none, or none that can be read. Over a started client. Raises KafkaError.
    """
    topics = await topic_metadata(client, {topic for topic, _ in heads})
    asked = [
        (head, offset, topics[head[0]].leaders.get(head[1], -1)) for head, offset in heads.items() if head[0] in topics
    ]
    # A question each: of several, Kafka answers a batch that is larger than asked for to the first alone.
    found = await asyncio.gather(*(_written_at(client, *each) for each in asked if each[2] >= 0))
    return {head: seconds for head, seconds in found if seconds is not None}


async def _written_at(
    client: AIOKafkaClient, head: TopicPartition, offset: int, leader: int
) -> tuple[TopicPartition, float | None]:
    topic, number = head
    question = FetchRequest(_WAIT, 1, 1, _READ_UNCOMMITTED, [(topic, [(number, offset, 1)])])
    answer: Any = await client.send(leader, question)
    for _, partitions in answer.topics:
        for _, code, *_, batches in partitions:
            if not code and batches:
                return head, _timestamp(batches, offset)
    return head, None


def _timestamp(batches: bytes, offset: int) -> float | None:
    """Of the batch that holds the first record at or after `offset`: what is in a batch was written together.

    Its head is all that is looked at, so that nothing has to be decompressed.
    """
    records = MemoryRecords(batches)
    while records.has_next():
        batch = records.next_batch()
        if not isinstance(batch, DefaultRecordBatch):
            return None  # of the formats before Kafka 0.11
        if batch.next_offset > offset:
            milliseconds = batch.max_timestamp if batch.timestamp_type == _WHEN_APPENDED else batch.first_timestamp
            return milliseconds / 1000 if milliseconds >= 0 else None
    return None
