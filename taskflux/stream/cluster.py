"""Requests to the cluster: connecting, retrying, one error for every failure; and the checks of `taskflux doctor`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from aiokafka import AIOKafkaClient, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    BrokerResponseError,
    ConsumerStoppedError,
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
)

from taskflux.stream import internals
from taskflux.stream.client import TROUBLE, Link, connection_options, error_name
from taskflux.stream.internals import BoundedConsumer
from taskflux.stream.settings import KafkaSettings
from taskflux.telemetry import metrics

T = TypeVar("T")

LEADERLESS: Final = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds before each retry while a partition's leader does not know that it leads: it learns that shortly after its
topic was created, or after an election.
"""
_NO_LEADER: Final = (NotLeaderForPartitionError, LeaderNotAvailableError)
_CLOSED: Final = "closed, since another request failed"
_STOP_TIMEOUT: Final = 2.0
_READER: Final = {
    # A larger batch comes alone, smaller ones come together in one answer.
    "max_partition_fetch_bytes": 4096,
    # It reads the time of one record of each partition, then drops the other records unpacked from that partition.
    "limit": 1_048_576,
    "apart": True,
    "auto_offset_reset": "earliest",
}


class Clients:
    """The clients for requests, each connected when it is first used."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._clients: dict[tuple[type, int], Any] = {}
        self._connecting = asyncio.Lock()
        self._closing = AsyncExitStack()
        self._closed = False
        self.reading = asyncio.Lock()
        """Held while the partitions of a reader are changed."""

    async def plain(self) -> AIOKafkaClient:
        """For `internals.topic_metadata`."""
        return await self._connected(AIOKafkaClient, AIOKafkaClient.bootstrap, AIOKafkaClient.close)

    async def admin(self) -> AIOKafkaAdminClient:
        """For topics, their configuration, and the commits of groups."""
        return await self._connected(AIOKafkaAdminClient, AIOKafkaAdminClient.start, AIOKafkaAdminClient.close)

    async def reader(self, fetch_wait: int = 1) -> BoundedConsumer:
        """For offsets (aiokafka's admin client has none: aio-libs/aiokafka#1045): a consumer without a group.

        A broker may hold its fetch for `fetch_wait` milliseconds.
        """

        async def stop(reader: BoundedConsumer) -> None:
            await internals.stop(reader, _STOP_TIMEOUT)

        options = _READER | {"fetch_max_wait_ms": fetch_wait}
        reader: BoundedConsumer = await self._connected(BoundedConsumer, BoundedConsumer.start, stop, options)
        return reader

    async def close(self) -> None:
        """Close all of them."""
        self._closed = True
        async with self._connecting:
            await self._closing.aclose()

    async def _connected(
        self,
        kind: type,
        start: Callable[[Any], Awaitable[None]],
        stop: Callable[[Any], Awaitable[None]],
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        async with self._connecting:
            if self._closed:
                raise KafkaConnectionError(_CLOSED)
            known = kind, options.get("fetch_max_wait_ms", 0)
            if known not in self._clients:
                client = kind(**self._options, **options)
                # Cancelled while it starts, aiokafka's client would lose a connection: it goes on, and `close` waits.
                starting = asyncio.ensure_future(start(client))
                self._closing.push_async_callback(stop, client)
                self._closing.push_async_callback(_ended, starting)
                await asyncio.shield(starting)
                self._clients[known] = client
                metrics.OPENED.labels("kafka").inc()
            return self._clients[known]


async def _ended(starting: asyncio.Future[None]) -> None:
    """Wait for a client's start, but not long."""
    await asyncio.wait([starting], timeout=_STOP_TIMEOUT)
    starting.cancel()
    await asyncio.wait([starting])
    if not starting.cancelled():
        starting.exception()  # whoever waited for it has it, or was cancelled


class Cluster:
    """Connects at the first request, and again after one that failed."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._timeout = settings.request_timeout
        self._link = Link(settings)
        self._clients: Clients | None = None

    async def ask(self, question: Callable[[Clients], Awaitable[T]]) -> T:
        """The answer to `question`, which is repeated if an idle connection has died or a leader is missing.

        `question` must be safe to repeat. Raises KafkaUnavailable, after `request_timeout` seconds a try at most.
        """
        died, leaderless = iter((0.0,)), iter(LEADERLESS)
        while True:
            since = time.monotonic()
            try:
                answer = await self._try(question)
            except TROUBLE as error:
                pause = next(leaderless if isinstance(error, _NO_LEADER) else died, None)
                if pause is None:
                    raise self._link.unavailable(error, since) from error
            else:
                self._link.works()
                return answer
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Close the connections; a later request opens others."""
        clients, self._clients = self._clients, None
        if clients is not None:
            await clients.close()

    async def _try(self, question: Callable[[Clients], Awaitable[T]]) -> T:
        if self._clients is None:
            self._clients = Clients(connection_options(self._settings))
        clients = self._clients
        try:
            async with asyncio.timeout(self._timeout):
                return await question(clients)
        except ConsumerStoppedError as error:  # which is not a KafkaError
            raise KafkaConnectionError(_CLOSED) from error
        except TROUBLE:
            if clients is self._clients:
                await self.close()
            raise


Config = Mapping[str, str]


class TopicReplicas(NamedTuple):
    """A topic's partitions: how many, the least number of replicas, and the least number of those in sync."""

    partitions: int
    replicas: int
    in_sync: int


class KafkaCheckup:
    """The checks of `taskflux doctor`. None of them changes anything, and each may raise KafkaUnavailable."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._cluster = Cluster(settings)

    async def close(self) -> None:
        """Close the connections."""
        await self._cluster.close()

    async def brokers(self) -> int:
        """How many brokers the cluster has."""
        return len(await self._cluster.ask(_brokers))

    async def replicas(self, topics: Iterable[str]) -> Mapping[str, TopicReplicas]:
        """Those of `topics` that exist."""
        wanted = set(topics)

        async def ask(clients: Clients) -> Mapping[str, TopicReplicas]:
            found: list[Any] = await (await clients.admin()).describe_topics()  # of all: topics it names are created
            return {
                each["topic"]: _replicas(each["partitions"])
                for each in found
                if each["topic"] in wanted and each["partitions"]
            }

        return await self._cluster.ask(ask)

    async def broker_config(self) -> Config | None:
        """The configuration of one broker; None if it does not return it."""

        async def ask(clients: Clients) -> Config | None:
            node = next(iter(await _brokers(clients)))
            found = await _configs(clients, [ConfigResource(ConfigResourceType.BROKER, str(node))])
            return next(iter(found.values()), None)

        return await self._cluster.ask(ask)

    async def topic_configs(self, topics: Iterable[str]) -> Mapping[str, Config]:
        """The configuration of those of `topics` for which the broker returns it."""
        wanted = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        return await self._cluster.ask(lambda clients: _configs(clients, wanted))

    async def idempotence_refused(self) -> str | None:
        """Why this cluster does not support an idempotent producer; None if it does."""
        producer = AIOKafkaProducer(**connection_options(self._settings), enable_idempotence=True)
        since = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                await producer.start()
        except (NotImplementedError, IncompatibleBrokerVersion):
            return "the broker does not support it"
        except BrokerResponseError as error:
            return error_name(error)
        except TROUBLE as error:
            raise Link(self._settings).unavailable(error, since) from error
        finally:
            await producer.stop()
        return None


async def _brokers(clients: Clients) -> list[int]:
    found: dict[str, Any] = await (await clients.admin()).describe_cluster()
    return [each["node_id"] for each in found["brokers"]]


def _replicas(partitions: list[dict[str, Any]]) -> TopicReplicas:
    return TopicReplicas(
        len(partitions), min(len(each["replicas"]) for each in partitions), min(len(each["isr"]) for each in partitions)
    )


async def _configs(clients: Clients, wanted: list[ConfigResource]) -> dict[str, Config]:
    try:
        answers: list[Any] = await (await clients.admin()).describe_configs(wanted)
    except (NotImplementedError, IncompatibleBrokerVersion):
        return {}
    found: dict[str, Config] = {}
    for answer in answers:
        for code, _, _, name, entries in answer.resources:
            if not code:  # usually: we lack the permission
                found[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    return found
