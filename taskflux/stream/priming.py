"""Commits where groups begin that have never run.

KEDA takes a partition without a commit for one whose lag is the end offset (keda#5274). A member commits its
partitions' starts when it is given them (`taskflux.stream.member`); a handler that begins at zero has no member yet.
"""

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
    RebalanceInProgressError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.commit import OffsetCommitRequest

from taskflux.stream.cluster import Cluster
from taskflux.stream.errors import KafkaUnavailable, error_name
from taskflux.stream.offsets import TopicPartition, group_coordinator
from taskflux.stream.positions import TopicPositions, read_positions
from taskflux.stream.settings import KafkaSettings

_NOBODY: Final = ""
_POLL: Final = 0.2
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
        await asyncio.sleep(_POLL)


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
