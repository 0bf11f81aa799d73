"""How far a consumer is in each of its partitions, and what of it may be committed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from taskflux.stream.topics import Place


class Progress:
    """What has been handed out and what of it is done, for the partitions held now: pure.

    A commit says that everything below it is done, so a record that is still being claimed holds back those behind
    it in its partition. A commit never goes back.
    """

    def __init__(self) -> None:
        self._partitions: dict[Place, _Partition] = {}

    def assign(self, partitions: Iterable[Place]) -> None:
        """Hold exactly these, from scratch: what was handed out before counts no more (it is delivered again)."""
        self._partitions = {partition: _Partition() for partition in partitions}

    def handed(self, partition: Place, offset: int) -> None:
        """A record goes to the caller."""
        held = self._partitions.get(partition)
        if held is None:
            return
        if held.outstanding and offset <= held.outstanding[-1]:  # the client went back, to the commit or before it
            held.outstanding.clear()
            held.done.clear()
        held.outstanding.append(offset)
        held.position = offset + 1

    def position(self, partition: Place) -> int | None:
        """The offset behind the last record that was handed out; None: none was, since `assign`."""
        held = self._partitions.get(partition)
        return None if held is None else held.position

    def done(self, partition: Place, offset: int) -> None:
        """A record needs no redelivery; one that was not handed out since `assign` is ignored."""
        held = self._partitions.get(partition)
        if held is None or not held.outstanding or not held.outstanding[0] <= offset <= held.outstanding[-1]:
            return
        held.done.add(offset)
        while held.outstanding and held.outstanding[0] in held.done:
            first = held.outstanding.popleft()
            held.done.discard(first)
            held.next = first + 1

    def passed(self, partition: Place, position: int) -> bool:
        """Below `position`, the client has nothing more to hand out. Whether a commit can advance because of it."""
        held = self._partitions.get(partition)
        if held is None or held.outstanding or position <= max(held.next or 0, held.committed or 0):
            return False
        held.next = position
        return True

    def begin_at(self, partition: Place, offset: int) -> None:
        """The partition's log begins at `offset`, and the group has no (valid) commit: commit that."""
        held = self._partitions.get(partition)
        if held is not None and held.next is None:
            held.next = offset

    def to_commit(self) -> dict[Place, int]:
        """Partition → offset, of those that have moved since their last commit."""
        return {
            partition: held.next
            for partition, held in self._partitions.items()
            if held.next is not None and (held.committed is None or held.next > held.committed)
        }

    def committed(self, offsets: dict[Place, int]) -> None:
        """Kafka has taken these."""
        for partition, offset in offsets.items():
            held = self._partitions.get(partition)
            if held is not None:
                held.committed = offset


@dataclass(slots=True)
class _Partition:
    outstanding: deque[int] = field(default_factory=deque)
    done: set[int] = field(default_factory=set)
    position: int | None = None
    next: int | None = None
    committed: int | None = None
