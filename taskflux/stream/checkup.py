"""What `taskflux doctor` asks Kafka. Nothing here writes a record or changes a group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import BrokerResponseError, IncompatibleBrokerVersion

from taskflux.stream.causes import Link
from taskflux.stream.client import TROUBLE, connection_options, error_name
from taskflux.stream.cluster import Clients, Cluster
from taskflux.stream.settings import KafkaSettings

Config = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicReplicas:
    """A topic's partitions: how many, the least number of replicas, and the least number of those in sync."""

    partitions: int
    replicas: int
    in_sync: int


class KafkaCheckup:
    """Questions that change nothing; every one may raise KafkaUnavailable."""

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
            every: list[Any] = await (await clients.admin()).describe_topics()  # of topics that it names it makes some
            return {
                each["topic"]: _replicas(each["partitions"])
                for each in every
                if each["topic"] in wanted and each["partitions"]
            }

        return await self._cluster.ask(ask)

    async def broker_config(self) -> Config | None:
        """The configuration of one broker; None where it does not tell us."""

        async def ask(clients: Clients) -> Config | None:
            node = next(iter(await _brokers(clients)))
            found = await _configs(clients, [ConfigResource(ConfigResourceType.BROKER, str(node))])
            return next(iter(found.values()), None)

        return await self._cluster.ask(ask)

    async def topic_configs(self, topics: Iterable[str]) -> Mapping[str, Config]:
        """The configuration of those of `topics` that the broker tells us of."""
        wanted = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        return await self._cluster.ask(lambda clients: _configs(clients, wanted))

    async def idempotence_refused(self) -> str | None:
        """Why no idempotent producer is had from this cluster; None where it is."""
        producer = AIOKafkaProducer(**connection_options(self._settings), enable_idempotence=True)
        since = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                await producer.start()
        except (NotImplementedError, IncompatibleBrokerVersion):
            return "the broker knows none"
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
            if not code:  # mostly: we are not allowed to ask
                found[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    return found
