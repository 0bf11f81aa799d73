"""Since when the oldest record waits that a group has not taken.

Its timestamp says so: the log is read for that alone, one batch for each position at which something waits. A clock may
be wrong, and another producer's timestamp anything; what offsets tell from look to look holds in any case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

from taskflux.stream.offsets import TopicPartition
from taskflux.stream.positions import PartitionPositions, TopicPositions

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
