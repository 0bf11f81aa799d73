"""The requests that tell offsets, over a started client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import LeaderNotAvailableError, NoBrokersAvailable, for_code
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest

from taskflux.stream.metadata import TopicMetadata

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
