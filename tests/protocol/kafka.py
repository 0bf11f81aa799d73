"""Kafka: one topic with its partitions, and the group of the workers that read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from taskflux.store.upkeep import Published
from taskflux.stream.positions import PartitionPositions, TopicPositions
from taskflux.upkeep.recovery import will_deliver
from tests.protocol.tables import Place


class Record(NamedTuple):
    """What is published: a task, at the version that its outbox row had."""

    task: int
    version: int


@dataclass(slots=True)
class Partition:
    """Records from offset `start` on, the group's commit, and who reads: `owner` in this `generation` of the group."""

    start: int = 0
    records: list[Record] = field(default_factory=list)
    committed: int | None = None
    owner: str = ""
    generation: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.records)


class Topic:
    """The log of one task type. Records stay in their order within a partition."""

    def __init__(self, partitions: int) -> None:
        self.log = 1
        self.partitions = [Partition() for _ in range(partitions)]
        self._written: set[tuple[Place, Record]] = set()

    def append(self, record: Record, partition: int) -> Place:
        at = self.partitions[partition]
        at.records.append(record)
        place = Place(self.log, partition, at.end - 1)
        self._written.add((place, record))
        return place

    def had(self, place: Place, record: Record) -> bool:
        """Whether this record was written there, lost since or not."""
        return (place, record) in self._written

    def recreate(self) -> None:
        """The topic is lost and created again: another log, without records and commits."""
        self.log += 1
        for at in self.partitions:
            at.start, at.records, at.committed = 0, [], None

    def lose_the_end(self, partition: int) -> None:
        """An unclean election: the last records are lost, and their offsets are used again."""
        at = self.partitions[partition]
        at.records = at.records[: len(at.records) // 2]

    def lose_the_start(self, partition: int) -> None:
        """Retention: the first records are deleted, read or not."""
        at = self.partitions[partition]
        lost = (len(at.records) + 1) // 2
        at.start, at.records = at.start + lost, at.records[lost:]

    def positions(self) -> TopicPositions:
        """What the auditor reads."""
        return TopicPositions(
            UUID(int=self.log),
            {number: PartitionPositions(at.start, at.end, at.committed) for number, at in enumerate(self.partitions)},
        )


def lost(task: int, version: int, place: Place, positions: TopicPositions) -> bool:
    """The auditor's verdict on one published outbox row, by its own code."""
    row = Published(UUID(int=task), "model", version, UUID(int=place.log), place.partition, place.offset)
    return not will_deliver(row, {row.type: positions})
