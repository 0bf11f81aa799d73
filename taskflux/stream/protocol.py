"""Topic ids (KIP-516): they tell a recreated topic from the one of the same name before.

aiokafka speaks the Metadata request up to version 5, ids came with version 10; this defines that version with
aiokafka's own protocol classes. Needs Kafka 2.8 or newer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import LeaderNotAvailableError, NoBrokersAvailable, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from taskflux.stream.client import KafkaUnavailable

_NO_ID = UUID(int=0)
_TEXT = CompactString("utf-8")


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """A topic that exists: its id, and partition → leading broker (-1: none at the moment)."""

    log_id: UUID
    leaders: dict[int, int]


async def topic_metadata(client: AIOKafkaClient, topics: Iterable[str]) -> dict[str, TopicMetadata]:
    """Those of `topics` that exist, asked over a started client; creates none.

    Raises aiokafka's KafkaError, and KafkaUnavailable where the broker knows no topic ids.
    """
    node = client.get_random_node()
    if node is None:
        raise NoBrokersAvailable
    try:
        response: Any = await client.send(node, _TopicsRequest(topics))
    except NotImplementedError as error:
        raise KafkaUnavailable("the broker knows no topic ids: Kafka 2.8 or newer is needed") from error
    found = {}
    for code, name, log_id, _, partitions, *_ in response.topics:
        if code == UnknownTopicOrPartitionError.errno:
            continue
        if code:
            raise for_code(code)(name)
        found[name] = TopicMetadata(log_id, {number: leader for _, number, leader, *_ in partitions})
    return found


class _Uuid(AbstractType[UUID]):  # type: ignore[misc]  # aiokafka ships no type marker
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))

    @classmethod
    def repr(cls, value: UUID) -> str:
        return repr(value)


class _Response10(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), ("tags", TaggedFields)),
        ),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _Request10(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Response10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicsRequest(Request[_Request10]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Iterable[str]) -> None:
        self._topics: list[tuple[UUID, str, dict[int, bytes]]] = [(_NO_ID, topic, {}) for topic in topics]

    def build(self, request_struct_class: type[_Request10]) -> _Request10:
        return request_struct_class(self._topics, False, False, False, {})


EARLIEST = -2
LATEST = -1
_GROUP = 0
_READ_UNCOMMITTED = 0
_CONSUMER = -1
_NO_COMMIT = -1

TopicPartition = tuple[str, int]


async def list_offsets(
    client: AIOKafkaClient, topics: Mapping[str, TopicMetadata], which: int
) -> dict[TopicPartition, int]:
    """The offset of the first record (EARLIEST), or what the broker lists as the next one (LATEST), of every partition
    of `topics`. Raises KafkaError."""
    by_leader: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for topic, metadata in topics.items():
        for partition, leader in metadata.leaders.items():
            if leader < 0:
                raise LeaderNotAvailableError(f"{topic}-{partition}")
            by_leader.setdefault(leader, {}).setdefault(topic, []).append((partition, which))
    answers: list[Any] = await asyncio.gather(
        *(
            client.send(leader, OffsetRequest(_CONSUMER, _READ_UNCOMMITTED, list(wanted.items())))
            for leader, wanted in by_leader.items()
        )
    )
    offsets = {}
    for answer in answers:
        for topic, partitions in answer.topics:
            for partition, code, _, offset in partitions:
                _check(code, topic)
                offsets[topic, partition] = offset
    return offsets


async def end_offsets(client: AIOKafkaClient, topics: Mapping[str, TopicMetadata]) -> dict[TopicPartition, int]:
    """The offset after the last record of every partition of `topics`. Raises KafkaError.

    Tansu 0.6 lists the offset after the first record of the last batch; what it says in answer to a fetch is right.
    """
    listed = await list_offsets(client, topics, LATEST)
    by_leader: dict[int, dict[str, list[tuple[int, int, int]]]] = {}
    for (topic, partition), offset in listed.items():
        leader = topics[topic].leaders[partition]
        by_leader.setdefault(leader, {}).setdefault(topic, []).append((partition, offset, 1))
    answers: list[Any] = await asyncio.gather(
        *(
            client.send(leader, FetchRequest(1, 0, 1, _READ_UNCOMMITTED, list(wanted.items())))
            for leader, wanted in by_leader.items()
        )
    )
    ends = dict(listed)
    for answer in answers:
        for topic, partitions in answer.topics:
            for partition, _, high_watermark, *_ in partitions:
                ends[topic, partition] = max(listed[topic, partition], high_watermark)
    return ends


async def committed_offsets(
    client: AIOKafkaClient, group: str, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, int | None]:
    """The group's commits, None where it has none. Raises KafkaError.

    Partitions are always named: Tansu answers no question for all of them.
    """
    wanted: dict[str, list[int]] = {}
    for topic, partition in partitions:
        wanted.setdefault(topic, []).append(partition)
    if not wanted:
        return {}
    coordinator = await group_coordinator(client, group)
    answer: Any = await client.send(coordinator, OffsetFetchRequest(group, list(wanted.items())))
    _check(getattr(answer, "error_code", 0), group)
    commits: dict[TopicPartition, int | None] = {}
    for topic, found in answer.topics:
        for partition, offset, _, code in found:
            _check(code, topic)
            commits[topic, partition] = None if offset == _NO_COMMIT else offset
    return commits


async def group_coordinator(client: AIOKafkaClient, group: str) -> int:
    """The broker that keeps the group's commits. Raises KafkaError."""
    node = client.get_random_node()
    if node is None:
        raise NoBrokersAvailable
    answer: Any = await client.send(node, FindCoordinatorRequest(group, _GROUP))
    _check(answer.error_code, group)
    return int(answer.coordinator_id)


def _check(code: int, subject: str) -> None:
    if code:
        raise for_code(code)(subject)


_WAIT: Final = 200
"""Milliseconds that the broker may take to find the record, which is there: the embedded one gives up within them."""
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
