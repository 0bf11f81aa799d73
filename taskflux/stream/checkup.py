"""What `taskflux doctor` asks Kafka. Nothing here writes a record or changes a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, NoBrokersAvailable, for_code
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from taskflux.stream.client import Cluster, KafkaUnavailable, error_name

_TOPIC: Final = 2
_BROKER: Final = 4

Config = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicReplicas:
    """A topic's partitions: how many, the least number of replicas, and the least number of those in sync."""

    partitions: int
    replicas: int
    in_sync: int


@dataclass(frozen=True, slots=True)
class KafkaCheckup:
    """Questions that change nothing; every one may raise KafkaUnavailable."""

    cluster: Cluster

    async def brokers(self) -> int:
        """How many brokers the cluster has."""

        async def ask(client: AIOKafkaClient) -> int:
            return len((await client.fetch_all_metadata()).brokers())

        return await self.cluster.ask(ask)

    async def replicas(self, topics: Iterable[str]) -> Mapping[str, TopicReplicas]:
        """Those of `topics` that exist."""
        wanted = set(topics)

        async def ask(client: AIOKafkaClient) -> Mapping[str, TopicReplicas]:
            metadata = await client.fetch_all_metadata()
            found = {topic: metadata._partitions[topic].values() for topic in wanted & set(metadata._partitions)}
            return {topic: _replicas(list(partitions)) for topic, partitions in found.items() if partitions}

        return await self.cluster.ask(ask)

    async def broker_config(self) -> Config | None:
        """The configuration of one broker; None where it does not tell us."""

        async def ask(client: AIOKafkaClient) -> Config | None:
            node = _node(client)
            found = await _configs(client, node, [(_BROKER, str(node), None)])
            return next(iter(found.values()), None)

        return await self.cluster.ask(ask)

    async def topic_configs(self, topics: Iterable[str]) -> Mapping[str, Config]:
        """The configuration of those of `topics` that the broker tells us of."""
        wanted: list[tuple[int, str, None]] = [(_TOPIC, topic, None) for topic in topics]

        async def ask(client: AIOKafkaClient) -> Mapping[str, Config]:
            return await _configs(client, _node(client), wanted)

        return await self.cluster.ask(ask)

    async def idempotence_refused(self) -> str | None:
        """Why no idempotent producer is had from this cluster; None where it is."""

        async def ask(client: AIOKafkaClient) -> str | None:
            try:
                answer: Any = await client.send(_node(client), InitProducerIdRequest(None, 60_000))
            except (NotImplementedError, IncompatibleBrokerVersion):
                return "the broker knows none"
            return error_name(for_code(answer.error_code)()) if answer.error_code else None

        return await self.cluster.ask(ask)


def _node(client: AIOKafkaClient) -> int:
    node: int | None = client.get_random_node()
    if node is None:
        raise NoBrokersAvailable
    return node


def _replicas(partitions: list[Any]) -> TopicReplicas:
    return TopicReplicas(
        len(partitions), min(len(each.replicas) for each in partitions), min(len(each.isr) for each in partitions)
    )


async def _configs(client: AIOKafkaClient, node: int, wanted: list[tuple[int, str, None]]) -> dict[str, Config]:
    try:
        answer: Any = await client.send(node, DescribeConfigsRequest(wanted))
    except (NotImplementedError, IncompatibleBrokerVersion):
        return {}
    found: dict[str, Config] = {}
    for code, _, _, name, entries in answer.resources:
        if not code:  # mostly: we are not allowed to ask
            found[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    return found


__all__ = ["Config", "KafkaCheckup", "KafkaUnavailable", "TopicReplicas"]
