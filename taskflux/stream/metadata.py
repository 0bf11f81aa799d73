"""Topic ids (KIP-516): they tell a recreated topic from the one of the same name before.

aiokafka speaks the Metadata request up to version 5, ids came with version 10; this defines that version with
aiokafka's own protocol classes. Needs Kafka 2.8 or newer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import NoBrokersAvailable, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from taskflux.stream.errors import KafkaUnavailable

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
