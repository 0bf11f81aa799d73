"""Where logs begin and end, and how far groups have come."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from aiokafka.client import AIOKafkaClient

from taskflux.stream.client import Cluster
from taskflux.stream.protocol import (
    EARLIEST,
    TopicPartition,
    committed_offsets,
    end_offsets,
    list_offsets,
    topic_metadata,
    written_at,
)
from taskflux.stream.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class PartitionPositions:
    """One partition: the log's first offset, the offset after its last record, the group's commit (None: none)."""

    start: int
    end: int
    committed: int | None

    @property
    def next(self) -> int:
        """The offset that the group takes next: its commit, or the log's start."""
        return self.start if self.committed is None else max(self.committed, self.start)

    @property
    def lag(self) -> int:
        """Records that nobody has taken."""
        return max(self.end - self.next, 0)


@dataclass(frozen=True, slots=True)
class TopicPositions:
    """A topic as one group sees it, partition by partition."""

    log_id: UUID
    partitions: Mapping[int, PartitionPositions]

    @property
    def lag(self) -> int:
        """Records that nobody has taken."""
        return sum(partition.lag for partition in self.partitions.values())

    def owes(self, log_id: UUID, partition: int, offset: int) -> bool:
        """Whether Kafka still owes the group the record at `offset` of that partition of that log.

        Read the tasks first and the positions after: a record that is sent in between then lies below `end`.
        """
        at = self.partitions.get(partition)
        return log_id == self.log_id and at is not None and at.next <= offset < at.end


class Positions:
    """Reads positions; connects at the first question and again after a failure.

    Every question may raise KafkaUnavailable, and sees a recreated topic at once.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._cluster = Cluster(settings)

    async def close(self) -> None:
        """Close the connection."""
        await self._cluster.close()

    async def read_all(self, topics: Mapping[str, str]) -> dict[str, TopicPositions]:
        """Topic → positions for every pair topic → group whose topic exists, in as few requests as there can be."""
        return await self._cluster.ask(lambda client: read_positions(client, topics))

    async def read(self, group: str, topic: str) -> TopicPositions | None:
        """Everything about one topic in one go; None where it does not exist."""
        return (await self.read_all({topic: group})).get(topic)

    async def log_ids(self, topics: Iterable[str]) -> dict[str, UUID]:
        """The ids of those of `topics` that exist."""
        metadata = await self._cluster.ask(lambda client: topic_metadata(client, topics))
        return {topic: found.log_id for topic, found in metadata.items()}

    async def log_id(self, topic: str) -> UUID | None:
        """The topic's id; None where it does not exist."""
        return (await self.log_ids([topic])).get(topic)

    async def start_offsets(self, topic: str) -> dict[int, int]:
        """Partition → offset of its first record; empty where the topic does not exist."""
        return await self._cluster.ask(lambda client: _starts(client, topic))

    async def end_offsets(self, topic: str) -> dict[int, int]:
        """Partition → offset after its last record; empty where the topic does not exist."""
        return await self._cluster.ask(lambda client: _ends(client, topic))

    async def committed(self, group: str, topic: str) -> dict[int, int | None]:
        """Partition → the group's commit, None for none; empty where the topic does not exist."""
        found = await self.read(group, topic)
        return {} if found is None else {number: at.committed for number, at in found.partitions.items()}

    async def written_at(self, heads: Mapping[TopicPartition, int]) -> dict[TopicPartition, float]:
        """Partition → when its record at that offset was written (seconds since 1970), as whoever wrote it says.

        Left out where there is none, or none that can be read.
        """
        return await self._cluster.ask(lambda client: written_at(client, heads)) if heads else {}

    async def lag(self, group: str, topic: str) -> int | None:
        """Records that nobody has taken; None where the topic does not exist."""
        found = await self.read(group, topic)
        return None if found is None else found.lag


async def read_positions(client: AIOKafkaClient, topics: Mapping[str, str]) -> dict[str, TopicPositions]:
    """`Positions.read_all` over a started client. Raises KafkaError, KafkaUnavailable."""
    metadata = await topic_metadata(client, topics)
    commits: dict[tuple[str, int], int | None] = {}
    for group in sorted({topics[topic] for topic in metadata}):
        wanted = [(topic, number) for topic in metadata if topics[topic] == group for number in metadata[topic].leaders]
        commits |= await committed_offsets(client, group, wanted)
    starts = await list_offsets(client, metadata, EARLIEST)
    ends = await end_offsets(client, metadata)
    return {
        topic: TopicPositions(
            found.log_id,
            {
                number: PartitionPositions(starts[topic, number], ends[topic, number], commits.get((topic, number)))
                for number in sorted(found.leaders)
            },
        )
        for topic, found in metadata.items()
    }


async def _starts(client: AIOKafkaClient, topic: str) -> dict[int, int]:
    offsets = await list_offsets(client, await topic_metadata(client, [topic]), EARLIEST)
    return {partition: offset for (_, partition), offset in offsets.items()}


async def _ends(client: AIOKafkaClient, topic: str) -> dict[int, int]:
    offsets = await end_offsets(client, await topic_metadata(client, [topic]))
    return {partition: offset for (_, partition), offset in offsets.items()}


MOST: Final = 512
"""Marks that a partition keeps; beyond, every second one is let go, and bounds get as coarse as they are high."""


class Waiting:
    """How long the oldest record that a group has not taken has been in its log.

    Each look notes how far the logs have come. A record at the group's position was not there at the last look that
    found the log's end at or before it, so it is at most that old. Where no look did, it was there at the first, and
    is at least as old as that.
    """

    def __init__(self) -> None:
        self._marks: dict[TopicPartition, deque[tuple[float, int]]] = {}
        self._written: dict[TopicPartition, tuple[int, float]] = {}

    def unknown(self, topics: Mapping[str, TopicPositions]) -> dict[TopicPartition, int]:
        """Where something waits and nobody has read yet since when: partition → offset."""
        return {
            place: at.next
            for place, at in _partitions(topics)
            if at.lag and self._written.get(place, (None,))[0] != at.next
        }

    def look(
        self, topics: Mapping[str, TopicPositions], now: float, ages: Mapping[TopicPartition, float] | None = None
    ) -> Mapping[str, float]:
        """Topic → seconds that its oldest record has waited, 0 where none does.

        Args:
            now: monotonic.
            ages: of those that were `unknown`, how old their timestamp makes them; left out where it could not be read.
        """
        oldest = dict.fromkeys(topics, 0.0)
        for place, at in _partitions(topics):
            if ages is not None and place in ages:
                self._written[place] = (at.next, now - ages[place])
            oldest[place[0]] = max(oldest[place[0]], self._age(place, at, now))
        return oldest

    def _age(self, place: TopicPartition, at: PartitionPositions, now: float) -> float:
        marks = self._marks.setdefault(place, deque())
        if marks and at.end < marks[-1][1]:
            marks.clear()  # a log that was made anew
            self._written.pop(place, None)
        # The last mark at or before the group's position is kept: what waits came after it.
        while len(marks) >= 2 and marks[1][1] <= at.next:
            marks.popleft()
        age = self._bounded(place, at, marks[0] if marks else None, now) if at.lag else 0.0
        if not marks or at.end > marks[-1][1]:
            marks.append((now, at.end))
        elif len(marks) == 1 and not at.lag:
            marks[0] = (now, at.end)  # still at rest
        if len(marks) > MOST:
            self._marks[place] = deque(mark for number, mark in enumerate(marks) if number % 2 == 0)
        return age

    def _bounded(
        self, place: TopicPartition, at: PartitionPositions, mark: tuple[float, int] | None, now: float
    ) -> float:
        offset, written = self._written.get(place, (None, 0.0))
        known = max(0.0, now - written) if offset == at.next else None
        if mark is None:
            return known or 0.0
        bound = now - mark[0]
        if known is None:
            return bound
        return min(known, bound) if mark[1] <= at.next else max(known, bound)


def _partitions(topics: Mapping[str, TopicPositions]) -> Iterator[tuple[TopicPartition, PartitionPositions]]:
    for topic, positions in topics.items():
        for number, at in positions.partitions.items():
            yield (topic, number), at
