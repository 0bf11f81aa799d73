"""What aiokafka has no public API for. No other module uses private names of it, or defines parts of Kafka's protocol.

- Topic ids (KIP-516, Kafka 2.8): aiokafka asks for metadata up to version 5, ids came with version 10. No issue.
- Closing an idempotent producer while Kafka is unreachable: `stop` never returns (aio-libs/aiokafka#1101).
- Closing a consumer while Kafka is unreachable: `stop` may end half-way and leave tasks running. No issue; #659, which
  is closed, is about a `stop` that never returns.
- Asking for the commits of several partitions at once: a consumer asks for one after the other. No issue.
- Inspecting a broker's answer to a fetch before the consumer unpacks it without a limit: there is no hook. No issue.
- Leaving a group of Tansu, the embedded broker, whose first generation is 0: a bug of the broker's
  (`KafkaSettings.tansu`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from struct import pack
from typing import Any, NamedTuple
from uuid import UUID

from aiokafka import AIOKafkaClient, AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, NoBrokersAvailable, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

from taskflux.stream import record_batches
from taskflux.stream.client import TROUBLE, KafkaUnavailable, error_name
from taskflux.stream.topics import Place

log = logging.getLogger(__name__)

_FULL = 0.1
"""Seconds until a consumer that has reached its limit asks for more."""
_TEXT = CompactString("utf-8")
_ID = ("id_high", Int64), ("id_low", Int64)
"""A topic's id: 16 bytes, for which aiokafka has no type; 0 in a request that names the topic."""


class TopicMetadata(NamedTuple):
    """A topic that exists: its id, and partition → leading broker (-1: none at the moment).

    The id distinguishes a recreated topic from the former one of the same name.
    """

    log_id: UUID
    leaders: dict[int, int]


async def topic_metadata(
    client: AIOKafkaClient, topics: Iterable[str], passed_over: Collection[type[KafkaError]] = ()
) -> dict[str, TopicMetadata]:
    """Those of `topics` that exist, requested over a started client; creates none.

    Topics with one of the errors `passed_over` are left out.

    Raises aiokafka's KafkaError, and KafkaUnavailable if the broker does not support topic ids.
    """
    node = client.get_random_node()
    if node is None:
        raise NoBrokersAvailable
    try:
        response: Any = await client.send(node, _TopicsRequest(tuple(topics)))
    except NotImplementedError as error:
        raise KafkaUnavailable("the broker does not support topic ids: Kafka 2.8 or newer is needed") from error
    found = {}
    for code, name, high, low, _, partitions, *_ in response.topics:
        if code == UnknownTopicOrPartitionError.errno or for_code(code) in passed_over:
            continue
        if code:
            raise for_code(code)(name)
        leaders = {number: leader for _, number, leader, *_ in partitions}
        found[name] = TopicMetadata(UUID(bytes=pack(">qq", high, low)), leaders)
    return found


class _Response10(Response):  # type: ignore[misc]  # aiokafka ships no type marker
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
                *_ID,
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
        ("topics", CompactArray(*_ID, ("name", _TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


@dataclass(frozen=True)
class _TopicsRequest(Request[_Request10]):  # type: ignore[misc]
    topics: tuple[str, ...]
    API_KEY = 3

    def build(self, request_struct_class: type[_Request10]) -> _Request10:
        return request_struct_class([(0, 0, topic, {}) for topic in self.topics], False, False, False, {})


async def committed(consumer: AIOKafkaConsumer, places: Collection[TopicPartition]) -> dict[Place, int | None]:
    """The group's commits on these partitions, in one request: the consumer itself sends one for each.

    Raises aiokafka's KafkaError.
    """
    found = await consumer._coordinator.fetch_committed_offsets(list(places))
    offsets = {place: found[place].offset if place in found else -1 for place in places}
    return {place: None if offset == -1 else offset for place, offset in offsets.items()}


async def members(admin: AIOKafkaAdminClient, group: str) -> int | None:
    """How many members the group has, those among them that wait to join; None if Kafka does not tell us.

    Raises aiokafka's KafkaError.
    """
    (answer,) = await admin.describe_consumer_groups([group])
    ((code, *_, found),) = [described[:6] for described in answer.groups]
    return None if code else len(found)


async def abandon(producer: AIOKafkaProducer) -> None:
    """Close without a flush, since batches may never be confirmed. Raises no error of Kafka's."""
    producer._closed = True
    try:
        await producer._sender.close()
    except TROUBLE as error:
        log.debug("the sender of an abandoned producer ended", extra={"error": error_name(error)})
    finally:
        await producer.client.close()


async def stop(consumer: AIOKafkaConsumer, timeout: float, *, tansu: bool = False) -> None:
    """Leave the group and close, within about `timeout` seconds. Raises no error of Kafka's."""
    coordinator = consumer._coordinator
    if tansu and getattr(coordinator, "generation", None) == 0:
        # aiokafka would take 0 for "not a member" and not leave; the request to leave does not name the generation.
        coordinator.generation = 1
    # In a task of its own: a task that it has cancelled itself may end it with a CancelledError.
    stopping = asyncio.create_task(consumer.stop(), name="kafka-consumer-stop")
    try:
        await asyncio.wait((stopping,), timeout=timeout)
    finally:
        stopping.cancel()
        coordinator, fetcher = consumer._coordinator, consumer._fetcher  # they may have been made meanwhile
        names = ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task")
        tasks = [getattr(coordinator, name, None) for name in names]
        tasks += [fetcher._fetch_task, *fetcher._pending_tasks] if fetcher is not None else []
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        for ended in await asyncio.gather(stopping, *running, return_exceptions=True):
            if isinstance(ended, BaseException):
                log.debug("a consumer did not stop by itself", extra={"error": error_name(ended)})
        await consumer._client.close()


class BoundedConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """A consumer that unpacks at most `limit` bytes of records that it has not returned yet: for all its partitions
    together, or with `apart` for each of them.

    A record that replaces what could not be unpacked or parsed says so (`record_batches.why_unreadable`). Faults that
    are found only while parsing (one of `record_batches.BROKEN` is raised) are replaced after `look_closely` and a
    seek.
    """

    def __init__(self, *, limit: int, apart: bool = False, **options: Any) -> None:
        super().__init__(**options)
        connection = {name: value for name, value in options.items() if name in signature(AIOKafkaClient).parameters}
        self._client = self._inspector = _Inspector(self.assignment, limit, apart, connection)

    def look_closely(self) -> None:
        """Parse every record before it is returned; this takes longer."""
        self._inspector.closely = True


class _Inspector(AIOKafkaClient):  # type: ignore[misc]
    def __init__(
        self, assigned: Callable[[], Collection[Place]], limit: int, apart: bool, connection: dict[str, Any]
    ) -> None:
        super().__init__(**connection)
        self.closely = False
        self._assigned = assigned
        self._limit = limit
        self._apart = apart
        self._inspecting = asyncio.Lock()
        """Held while an answer is inspected: the answers of all nodes share the limit."""
        self._unpacked: dict[Place, int] = {}
        """Unpacked bytes of each partition's last answer: the next is requested once its records were returned."""

    async def send(self, node_id: Any, request: Any, **options: Any) -> Any:
        """Send a request; from an answer to a fetch, batches beyond the limit are removed."""
        response = await super().send(node_id, request, **options)
        if isinstance(request, FetchRequest):
            async with self._inspecting:
                held_back = await self._inspect(response)
            if held_back:
                await asyncio.sleep(_FULL)  # otherwise the consumer would send the next fetch at once
        return response

    async def _inspect(self, response: Any) -> bool:
        """Remove the batches beyond the limit; whether all batches to unpack were removed."""
        answered = {(topic, partition[0]) for topic, partitions in response.topics for partition in partitions}
        held = self._assigned()
        self._unpacked = {at: size for at, size in self._unpacked.items() if at in held and at not in answered}
        whole, taken = 0, 0
        topics = []
        for topic, partitions in response.topics:
            inspected = []
            for number, *about, records in partitions:
                if records and (self.closely or record_batches.suspect(records)):
                    left = self._limit if self._apart else self._limit - sum(self._unpacked.values())
                    look = partial(record_batches.readable, records, self._limit, left, closely=self.closely)
                    records, self._unpacked[topic, number] = await asyncio.to_thread(look)
                    whole += 1
                    taken += bool(records)
                inspected.append((number, *about, records))
            topics.append((topic, inspected))
        response.topics = topics
        return whole > 0 and not taken
