"""Creating the topics that are missing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import NotControllerError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.admin import CreateTopicsRequest

from taskflux.stream.cluster import Cluster
from taskflux.stream.errors import KafkaUnavailable, error_name
from taskflux.stream.metadata import TopicMetadata, topic_metadata
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import dead_letter_topic, task_topic

_POLL = 0.1


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What `ensure_topics` found.

    Topics that it created, that were there, that have fewer partitions than asked (topic → partitions: more would
    move keys, so that is a person's decision), and that Kafka refused to create (topic → its reason).
    """

    created: list[str] = field(default_factory=list)
    existing: list[str] = field(default_factory=list)
    too_few_partitions: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


async def ensure_topics(settings: KafkaSettings, task_types: Iterable[str]) -> TopicReport:
    """Create the missing ones of the types' topics and the dead letters'; what exists is left as it is.

    Safe from several processes at once; returns when the new topics can be written to. Raises KafkaUnavailable, and
    ValueError where a type's name cannot be one.
    """
    wanted = sorted({task_topic(settings.topic_prefix, name) for name in task_types})
    wanted.append(dead_letter_topic(settings.topic_prefix))
    report = TopicReport()
    cluster = Cluster(settings)
    try:
        found = await cluster.ask(lambda client: topic_metadata(client, wanted))
        missing = [topic for topic in wanted if topic not in found]
        if missing:
            await cluster.ask(lambda client: _create(client, settings, missing, report))
        for topic, metadata in found.items():
            report.existing.append(topic)
            if len(metadata.leaders) < settings.partitions:
                report.too_few_partitions[topic] = len(metadata.leaders)
        await _wait_for_leaders(cluster, [*report.created, *report.existing], settings.request_timeout)
    finally:
        await cluster.close()
    return report


def topic_config(settings: KafkaSettings, topic: str) -> dict[str, str]:
    """The configuration that a topic of ours is created with."""
    config = {"cleanup.policy": "delete", "retention.ms": str(int(settings.retention_hours * 3_600_000))}
    if topic == dead_letter_topic(settings.topic_prefix):
        # A poison record is kept whole, with headers of ours on top.
        config["max.message.bytes"] = str(settings.dead_letter_max_bytes + 65_536)
    return config


async def _create(client: AIOKafkaClient, settings: KafkaSettings, topics: list[str], report: TopicReport) -> None:
    # aiokafka's own NewTopic refuses -1 replicas, the broker's default.
    request = CreateTopicsRequest(
        [
            (topic, settings.partitions, settings.replication_factor, [], list(topic_config(settings, topic).items()))
            for topic in topics
        ],
        int(settings.request_timeout * 1000),
        False,
    )
    controller = client.cluster.controller
    answer: Any = await client.send(client.get_random_node() if controller is None else controller.nodeId, request)
    for topic, code, message in answer.topic_errors:
        if code == TopicAlreadyExistsError.errno:
            report.existing.append(topic)
        elif code == NotControllerError.errno:
            raise NotControllerError(topic)
        elif code:
            report.refused[topic] = message or error_name(for_code(code)())
        else:
            report.created.append(topic)


async def _wait_for_leaders(cluster: Cluster, topics: list[str], timeout: float) -> None:
    """A created topic has leaders a moment later."""
    found: dict[str, TopicMetadata] = {}
    try:
        async with asyncio.timeout(timeout):
            while not all(topic in found and min(found[topic].leaders.values(), default=-1) >= 0 for topic in topics):
                await asyncio.sleep(_POLL if found else 0)
                found = await cluster.ask(lambda client: topic_metadata(client, topics))
    except TimeoutError as error:
        raise KafkaUnavailable("a topic has partitions without a leader") from error
