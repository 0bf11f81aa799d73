"""Creating the topics that are missing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    BrokerResponseError,
    GroupAuthorizationFailedError,
    IllegalGenerationError,
    NotControllerError,
    RebalanceInProgressError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.admin import CreateTopicsRequest
from aiokafka.protocol.commit import OffsetCommitRequest

from taskflux.stream.client import Cluster, KafkaUnavailable, error_name
from taskflux.stream.positions import TopicPositions, read_positions
from taskflux.stream.protocol import TopicMetadata, TopicPartition, group_coordinator, topic_metadata
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


_NOBODY: Final = ""
_LOOK: Final = 0.2
_HAS_MEMBERS: Final = (UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError)
_FORBIDDEN: Final = (GroupAuthorizationFailedError, TopicAuthorizationFailedError)


@dataclass(frozen=True, slots=True)
class Primed:
    """Commits that a group has got: on how many partitions of its topic, and how many records wait there."""

    topic: str
    partitions: int
    waiting: int


@dataclass(frozen=True, slots=True)
class PrimingReport:
    """What `prime` did, group by group; a group all of whose partitions had a commit stands nowhere.

    Groups that were primed, that have members (which commit their partitions' starts themselves), whose topic is
    missing (group → topic), and whose commits Kafka refused (group → its reason).
    """

    primed: dict[str, Primed] = field(default_factory=dict)
    left_to_members: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


async def prime(settings: KafkaSettings, readers: Iterable[tuple[str, str]]) -> PrimingReport:
    """Commit the log's start for every partition without a commit, for each (group, topic) of `readers`.

    A partition with a commit is not touched, and no record is skipped. Kafka itself refuses such a commit to a group
    that has members, so none is ever set back; safe from several processes at once. Raises KafkaUnavailable.
    """
    report = PrimingReport()
    cluster = Cluster(settings)
    try:
        for group, topic in readers:
            await _prime(cluster, settings.request_timeout, group, topic, report)
    finally:
        await cluster.close()
    return report


async def _prime(cluster: Cluster, timeout: float, group: str, topic: str, report: PrimingReport) -> None:
    """Ask for `timeout` seconds while a broker answers that it cannot say yet.

    A topic that was just made has leaders that do not know it for a moment, and a cluster that has never kept an
    offset makes the topic for them when it is first asked for a coordinator.
    """
    give_up_at = asyncio.get_running_loop().time() + timeout
    while True:
        try:
            return await cluster.ask(lambda client: _ask(client, group, topic, report))
        except KafkaUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, _FORBIDDEN):
                report.refused[group] = error_name(cause)
                return None
            soon = isinstance(cause, BrokerResponseError) and cause.retriable
            if not soon or asyncio.get_running_loop().time() > give_up_at:
                raise
        await asyncio.sleep(_LOOK)


async def _ask(client: AIOKafkaClient, group: str, topic: str, report: PrimingReport) -> None:
    found = (await read_positions(client, {topic: group})).get(topic)
    if found is None:
        report.missing[group] = topic
        return
    starts = {number: at.start for number, at in found.partitions.items() if at.committed is None}
    if not starts:
        return
    errors = await _commit(client, group, {(topic, number): start for number, start in starts.items()})
    wrong = next((error for error in errors.values() if error is not None), None)
    if wrong is None:
        report.primed[group] = Primed(topic, len(starts), _waiting(found, starts))
    elif issubclass(wrong, _HAS_MEMBERS):
        report.left_to_members.append(group)
    elif wrong.retriable:
        raise wrong(group)
    else:
        report.refused[group] = error_name(wrong())


def _waiting(positions: TopicPositions, numbers: Iterable[int]) -> int:
    return sum(positions.partitions[number].lag for number in numbers)


async def _commit(
    client: AIOKafkaClient, group: str, offsets: Mapping[TopicPartition, int]
) -> dict[TopicPartition, type[Any] | None]:
    """Commit as nobody's member, which only a group without members takes; Kafka's error for each, None for none."""
    wanted: dict[str, list[tuple[int, int, str]]] = {}
    for (topic, partition), offset in offsets.items():
        wanted.setdefault(topic, []).append((partition, offset, ""))
    request = OffsetCommitRequest(
        group,
        OffsetCommitRequest.DEFAULT_GENERATION_ID,
        _NOBODY,
        OffsetCommitRequest.DEFAULT_RETENTION_TIME,
        list(wanted.items()),
    )
    answer: Any = await client.send(await group_coordinator(client, group), request)
    return {
        (topic, partition): for_code(code) if code else None
        for topic, partitions in answer.topics
        for partition, code in partitions
    }
