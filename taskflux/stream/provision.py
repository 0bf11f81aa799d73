"""Creating missing topics, and the first commits of groups."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.errors import (
    BrokerResponseError,
    CommitFailedError,
    GroupAuthorizationFailedError,
    NotControllerError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from taskflux.stream import internals
from taskflux.stream.client import TROUBLE, KafkaUnavailable, Link, connection_options, error_name
from taskflux.stream.cluster import Clients, Cluster
from taskflux.stream.internals import TopicMetadata, topic_metadata
from taskflux.stream.positions import PartitionPositions, read_positions
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import dead_letter_topic, task_topic

_POLL: Final = 0.1
_LOOK: Final = 0.2
_STOP_TIMEOUT: Final = 4.0
_FORBIDDEN: Final = (GroupAuthorizationFailedError, TopicAuthorizationFailedError)


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What `ensure_topics` found.

    Topics that it created, that existed, that have too few partitions (topic → partitions: adding some moves keys, so
    that is a person's decision), and that Kafka refused to create (topic → its reason).
    """

    created: list[str] = field(default_factory=list)
    existing: list[str] = field(default_factory=list)
    too_few_partitions: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


async def ensure_topics(settings: KafkaSettings, task_types: Iterable[str]) -> TopicReport:
    """Create the missing topics of these types and of dead letters; existing ones are not changed.

    Safe from several processes at once; returns when the new topics can be written to. Raises KafkaUnavailable, and
    ValueError if a type's name is invalid.
    """
    wanted = sorted({task_topic(settings.topic_prefix, name) for name in task_types})
    wanted.append(dead_letter_topic(settings.topic_prefix))
    report = TopicReport()
    cluster = Cluster(settings)
    try:
        found = await _metadata(cluster, wanted)
        missing = [topic for topic in wanted if topic not in found]
        if missing:
            await cluster.ask(lambda clients: _create(clients, settings, missing, report))
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
        # A poison record is kept whole, with our headers added.
        config["max.message.bytes"] = str(settings.dead_letter_max_bytes + 65_536)
    return config


async def _create(clients: Clients, settings: KafkaSettings, topics: list[str], report: TopicReport) -> None:
    # NewTopic takes -1, the broker's default, only together with an assignment of replicas, which may be empty.
    assignment: dict[int, list[int]] | None = {} if settings.replication_factor == -1 else None
    new = [
        NewTopic(topic, settings.partitions, settings.replication_factor, assignment, topic_config(settings, topic))
        for topic in topics
    ]
    answer: Any = await (await clients.admin()).create_topics(new)
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
                found = await _metadata(cluster, topics)
    except TimeoutError as error:
        raise KafkaUnavailable("a topic has partitions without a leader") from error


async def _metadata(cluster: Cluster, topics: list[str]) -> dict[str, TopicMetadata]:
    async def ask(clients: Clients) -> dict[str, TopicMetadata]:
        return await topic_metadata(await clients.plain(), topics)

    return await cluster.ask(ask)


class Primed(NamedTuple):
    """First commits of a group: on how many partitions of its topic, and how many records wait there."""

    topic: str
    partitions: int
    waiting: int


@dataclass(frozen=True, slots=True)
class PrimingReport:
    """What `prime` did, group by group; a group whose partitions all had a commit is left out.

    Groups that were primed, that have members (which commit their partitions' starts themselves), whose topic is
    missing (group → topic), and whose commits Kafka refused (group → its reason).
    """

    primed: dict[str, Primed] = field(default_factory=dict)
    left_to_members: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


async def prime(settings: KafkaSettings, readers: Iterable[tuple[str, str]]) -> PrimingReport:
    """Commit the log's start for every partition without a commit, for each (group, topic) of `readers`.

    A partition with a commit is not changed, and no record is skipped. Kafka itself refuses such a commit for a group
    with members, so none is ever set back; safe from several processes at once. Raises KafkaUnavailable.
    """
    report = PrimingReport()
    cluster = Cluster(settings)
    try:
        for group, topic in readers:
            await _prime(cluster, settings, group, topic, report)
    finally:
        await cluster.close()
    return report


async def _prime(cluster: Cluster, settings: KafkaSettings, group: str, topic: str, report: PrimingReport) -> None:
    """Retry for `request_timeout` seconds while a broker answers that it is not ready.

    The leaders of a new topic do not know it for a moment, and a cluster without committed offsets creates the topic
    for them when it is first asked for a coordinator.
    """
    give_up_at = asyncio.get_running_loop().time() + settings.request_timeout
    while True:
        try:
            bare = await cluster.ask(lambda clients: _without_commit(clients, settings, group, topic, report))
            if bare:
                await _commit(settings, group, bare, report)
        except KafkaUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, _FORBIDDEN):
                report.refused[group] = error_name(cause)
                return
            soon = isinstance(cause, BrokerResponseError) and cause.retriable
            if not soon or asyncio.get_running_loop().time() > give_up_at:
                raise
            await asyncio.sleep(_LOOK)
        else:
            return


async def _without_commit(
    clients: Clients, settings: KafkaSettings, group: str, topic: str, report: PrimingReport
) -> dict[TopicPartition, PartitionPositions]:
    found = (await read_positions(clients, {topic: group}, tansu=settings.tansu)).get(topic)
    if found is None:
        report.missing[group] = topic
        return {}
    return {TopicPartition(topic, number): at for number, at in found.partitions.items() if at.committed is None}


async def _commit(
    settings: KafkaSettings, group: str, bare: dict[TopicPartition, PartitionPositions], report: PrimingReport
) -> None:
    """Commit without being a member, which only a group without members accepts. Raises KafkaUnavailable."""
    consumer = AIOKafkaConsumer(**connection_options(settings), group_id=group, enable_auto_commit=False)
    consumer.assign(list(bare))
    since = time.monotonic()
    try:
        async with asyncio.timeout(settings.request_timeout):
            await consumer.start()
            await consumer.commit({place: at.start for place, at in bare.items()})
        topic = next(iter(bare)).topic
        report.primed[group] = Primed(topic, len(bare), sum(at.lag for at in bare.values()))
    except CommitFailedError:
        report.left_to_members.append(group)
    except TROUBLE as error:
        if isinstance(error, BrokerResponseError) and not error.retriable:
            report.refused[group] = error_name(error)
        else:
            raise Link(settings).unavailable(error, since) from error
    finally:
        await internals.stop(consumer, _STOP_TIMEOUT)
