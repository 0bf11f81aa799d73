"""Since when the oldest record waits, told from offsets alone: nobody reads the log for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from handlers.stream.positions import TopicPositions

MOST: Final = 512
"""Marks that a partition keeps; beyond, every second one is let go, and ages get as coarse as they are high."""


class Waiting:
    """How long the oldest record that a group has not taken has been in its log.

    Each look notes how far the logs have come. A record at the group's position was not there at the last look that
    found the log's end at or before it, so it is at most that old. Before the first look nothing is known: the age
    counts from there.
    """

    def __init__(self) -> None:
        self._marks: dict[tuple[str, int], deque[tuple[float, int]]] = {}

    def look(self, topics: Mapping[str, TopicPositions], now: float) -> Mapping[str, float]:
        """Topic → seconds that its oldest record has waited, 0 where none does; `now` is monotonic."""
        return {topic: max(self._ages(topic, positions, now), default=0.0) for topic, positions in topics.items()}

    def _ages(self, topic: str, positions: TopicPositions, now: float) -> list[float]:
        ages = []
        for number, at in positions.partitions.items():
            marks = self._marks.setdefault((topic, number), deque())
            if marks and at.end < marks[-1][1]:
                marks.clear()  # a log that was made anew
            # The last mark at or before the group's position is kept: what waits came after it.
            while len(marks) >= 2 and marks[1][1] <= at.next:
                marks.popleft()
            if at.lag:
                ages.append(now - marks[0][0] if marks else 0.0)
            if not marks or at.end > marks[-1][1]:
                marks.append((now, at.end))
            elif len(marks) == 1 and not at.lag:
                marks[0] = (now, at.end)  # still at rest
            if len(marks) > MOST:
                self._marks[topic, number] = deque(mark for place, mark in enumerate(marks) if place % 2 == 0)
        return ages
