"""Where logs begin and end, the positions of groups, and the progress of a consumer in its partitions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    BrokerResponseError,
    GroupLoadInProgressError,
    InvalidTopicError,
    LeaderNotAvailableError,
    RecordTooLargeError,
    TopicAuthorizationFailedError,
)

from taskflux.stream.cluster import Clients, Cluster
from taskflux.stream.internals import TopicMetadata, topic_metadata
from taskflux.stream.record_batches import BROKEN
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import Place

_UNREADABLE: Final = (*BROKEN, RecordTooLargeError)
_NO_COMMIT: Final = -1
_METADATA_WAIT: Final = 0.02
_FETCH_LOOK: Final = 0.005
_HEADS_FETCH_MS: Final = 200
"""Milliseconds: with less, Tansu gives up while it still searches a long log."""
_HEADS_WAIT: Final = 2.0
"""Seconds that reading the records at some offsets takes at most."""


class PartitionPositions(NamedTuple):
    """One partition: the log's first offset, the offset after its last record, the group's commit (None: none)."""

    start: int
    end: int
    committed: int | None

    @property
    def next(self) -> int:
        """The offset that the group reads next: its commit, or the log's start."""
        return self.start if self.committed is None else max(self.committed, self.start)

    @property
    def lag(self) -> int:
        """Records that the group has not read."""
        return max(self.end - self.next, 0)


class TopicPositions(NamedTuple):
    """A topic as one group sees it, partition by partition."""

    log_id: UUID
    partitions: Mapping[int, PartitionPositions]

    @property
    def lag(self) -> int:
        """Records that the group has not read."""
        return sum(partition.lag for partition in self.partitions.values())

    def will_deliver(self, log_id: UUID, partition: int, offset: int) -> bool:
        """Whether Kafka will still deliver the record at `offset` of that partition of that log to the group.

        Read the tasks first and the positions after: a record that is sent in between is then below `end`.
        """
        at = self.partitions.get(partition)
        return log_id == self.log_id and at is not None and at.next <= offset < at.end


class Positions:
    """Reads positions; connects at the first request, and again after a failure.

    Every method may raise KafkaUnavailable, and sees a recreated topic at once.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._cluster = Cluster(settings)
        self._tansu = settings.tansu

    async def close(self) -> None:
        """Close the connections."""
        await self._cluster.close()

    async def read_all(self, topics: Mapping[str, str]) -> dict[str, TopicPositions]:
        """Topic → positions for every pair topic → group whose topic exists, in as few requests as possible."""
        return await self._cluster.ask(lambda clients: read_positions(clients, topics, tansu=self._tansu))

    async def read(self, group: str, topic: str) -> TopicPositions | None:
        """The positions of one topic; None if it does not exist."""
        return (await self.read_all({topic: group})).get(topic)

    async def log_id(self, topic: str) -> UUID | None:
        """The topic's id; None if it does not exist."""

        async def ask(clients: Clients) -> UUID | None:
            found = (await topic_metadata(await clients.plain(), [topic])).get(topic)
            return None if found is None else found.log_id

        return await self._cluster.ask(ask)

    async def lag(self, group: str, topic: str) -> int | None:
        """Records that the group has not read; None if the topic does not exist."""
        found = await self.read(group, topic)
        return None if found is None else found.lag

    async def lags(self, logs: Collection[Log], known: Lags) -> dict[Log, Behind]:
        """How far groups are behind, where that is known; for one who asks all the time.

        A log whose topic or group Kafka refuses to describe is left out, and so are partitions without a leader.

        However many logs there are, it is one request for metadata, one to each broker for the ends, and while
        something waits, one more to each broker and two for each of `GROUPS` groups.
        """
        return await self._cluster.ask(lambda clients: read_lags(clients, logs, known, tansu=self._tansu))

    async def written_at(self, heads: Mapping[Place, int]) -> dict[Place, float]:
        """Partition → when its record at that offset was written (seconds since 1970), by its producer's clock.

        Partitions without such a record, or with one that cannot be read, are left out.
        """
        return await self._cluster.ask(lambda clients: _written_at(clients, heads)) if heads else {}


class Log(NamedTuple):
    """A topic as one group reads it."""

    topic: str
    group: str


class Behind(NamedTuple):
    """How many records a group has not read, and how many partitions there are."""

    lag: int
    partitions: int


Ends = Mapping[str, Mapping[Place, int]]
"""Topic → partition → the offset after its last record."""

GROUPS: Final = 4
"""Groups whose commits one look reads: those that have waited longest."""
AT_REST: Final = 60
"""Looks after which the commits of a group at rest are read again: somebody may have moved it."""
REFUSED: Final = 10
"""Looks after which a group that could not be read is asked for again: the others come first."""


class _Read(NamedTuple):
    """What was read of a group: the ends of its log, how many records it had not read then, and at which look."""

    log_id: UUID
    ends: Mapping[Place, int]
    lag: int
    look: int


class Lags:
    """How far groups were behind when their commits were read last: pure.

    What a log has grown by since then is at most one record of lag. That wakes a handler at once, and does not take for
    lag what a group that keeps up has read meanwhile.
    """

    def __init__(self) -> None:
        self._looks = 0
        self._read: dict[Log, _Read] = {}
        self._refused: dict[Log, int] = {}

    def unsettled(self, logs: Mapping[Log, UUID], ends: Ends) -> list[Log]:
        """Those whose group is unknown or may have moved, in the order in which they are to be read."""
        self._looks += 1
        for log in [log for log, read in self._read.items() if logs.get(log) != read.log_id]:
            del self._read[log]  # it is not asked for any more, or its topic was recreated
        self._refused = {log: at for log, at in self._refused.items() if log in logs and self._looks - at < REFUSED}
        new = [log for log in logs if log not in self._read and log not in self._refused]
        busy = [log for log in self._read if self.behind(log, ends).lag]
        at_rest = [log for log, read in self._read.items() if self._looks - read.look > AT_REST and log not in busy]
        return new + busy + at_rest

    def note(self, log: Log, log_id: UUID, offsets: Mapping[Place, int], ends: Ends) -> None:
        """`offsets` are what the group reads next, and `ends` those of all logs, read before them."""
        self._read.pop(log, None)
        mine = ends[log.topic]
        lag = sum(max(0, end - offsets.get(place, 0)) for place, end in mine.items())
        self._read[log] = _Read(log_id, mine, lag, self._looks)

    def refuse(self, log: Log) -> None:
        """The group could not be read: it is unknown."""
        self._read.pop(log, None)
        self._refused[log] = self._looks

    def behind(self, log: Log, ends: Ends) -> Behind:
        """How far a group is behind that was read."""
        read, mine = self._read[log], ends[log.topic]
        grown = any(end > read.ends.get(place, 0) for place, end in mine.items())
        return Behind(max(read.lag, int(grown)), len(mine))

    def __contains__(self, log: Log) -> bool:
        return log in self._read


async def read_lags(clients: Clients, logs: Collection[Log], known: Lags, *, tansu: bool) -> dict[Log, Behind]:
    """`Positions.lags`. Raises KafkaError, KafkaUnavailable."""
    topics, passed_over = {log.topic for log in logs}, (InvalidTopicError, TopicAuthorizationFailedError)
    found = await topic_metadata(await clients.plain(), topics, passed_over) if logs else {}
    led = {
        topic: each._replace(leaders=leaders)
        for topic, each in found.items()
        if (leaders := {number: leader for number, leader in each.leaders.items() if leader >= 0})
    }
    if not led:
        return {}
    reader, places = await clients.reader(), _places(led)
    async with clients.reading:
        await _know(reader, places)
    by_place = await reader.end_offsets(places)
    if tansu:
        by_place = await _tansu_ends(clients, by_place)
    ends: dict[str, dict[Place, int]] = {topic: {} for topic in led}
    for place, end in by_place.items():
        ends[place.topic][place] = end
    ids = {log: led[log.topic].log_id for log in sorted(logs) if log.topic in led}
    asked = known.unsettled(ids, ends)[:GROUPS]
    if asked:
        starts = await reader.beginning_offsets(_places({log.topic: led[log.topic] for log in asked}))
        for log in asked:
            mine = _places({log.topic: led[log.topic]})
            try:
                commits = await _commits(await clients.admin(), log.group, mine)
            except BrokerResponseError:
                known.refuse(log)
                continue
            known.note(log, ids[log], {place: max(starts[place], commits[place] or 0) for place in mine}, ends)
    return {log: known.behind(log, ends) for log in ids if log in known}


async def read_positions(clients: Clients, topics: Mapping[str, str], *, tansu: bool) -> dict[str, TopicPositions]:
    """`Positions.read_all`. Raises KafkaError, KafkaUnavailable."""
    metadata = await topic_metadata(await clients.plain(), topics)
    if not metadata:
        return {}
    for topic, found in metadata.items():
        if min(found.leaders.values()) < 0:
            raise LeaderNotAvailableError(topic)
    commits: dict[Place, int | None] = {}
    for group in sorted({topics[topic] for topic in metadata}):
        mine = {topic: found for topic, found in metadata.items() if topics[topic] == group}
        commits |= await _commits(await clients.admin(), group, _places(mine))
    reader, places = await clients.reader(), _places(metadata)
    async with clients.reading:
        await _know(reader, places)
    starts = await reader.beginning_offsets(places)
    ends = await reader.end_offsets(places)
    if tansu:
        ends = await _tansu_ends(clients, ends)
    return {
        topic: TopicPositions(
            found.log_id,
            {
                number: PartitionPositions(starts[topic, number], ends[topic, number], commits[topic, number])
                for number in sorted(found.leaders)
            },
        )
        for topic, found in metadata.items()
    }


def _places(topics: Mapping[str, TopicMetadata]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for topic, found in topics.items() for number in found.leaders]


async def _know(reader: AIOKafkaConsumer, places: Iterable[TopicPartition]) -> None:
    """Wait until the reader's metadata has these partitions, which exist: it would request missing ones by name."""
    while any(place.partition not in (reader.partitions_for_topic(place.topic) or ()) for place in places):
        reader.unsubscribe()  # which makes it request the metadata of all topics
        await asyncio.sleep(_METADATA_WAIT)


async def _commits(admin: AIOKafkaAdminClient, group: str, places: list[TopicPartition]) -> dict[Place, int | None]:
    """The group's commits, None where it has none.

    The partitions are named: Tansu does not support a request for all of them.
    """
    found = await admin.list_consumer_group_offsets(group, partitions=places)
    if len(found) < len(places):  # aiokafka ignores the error of an answer as a whole
        raise GroupLoadInProgressError(group)
    return {place: None if at.offset == _NO_COMMIT else at.offset for place, at in found.items()}


async def _tansu_ends(clients: Clients, listed: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Tansu 0.6 lists the offset after the first record of the last batch; a fetch returns the right one."""
    reader = await clients.reader()
    async with clients.reading:
        with _assigned(reader, listed):
            while any(reader.highwater(place) is None for place in listed):  # noqa: ASYNC110  # aiokafka sets no event
                await asyncio.sleep(_FETCH_LOOK)
            return {place: max(offset, reader.highwater(place)) for place, offset in listed.items()}


async def _written_at(clients: Clients, heads: Mapping[Place, int]) -> dict[Place, float]:
    metadata = await topic_metadata(await clients.plain(), {topic for topic, _ in heads})
    offsets = {place: heads[place] for place in _places(metadata) if place in heads}
    reader = await clients.reader(_HEADS_FETCH_MS)
    written: dict[Place, float] = {}
    async with clients.reading:
        await _know(reader, offsets)
        with _assigned(reader, offsets):
            give_up_at = asyncio.get_running_loop().time() + _HEADS_WAIT
            for place in offsets:
                left = max(0.0, give_up_at - asyncio.get_running_loop().time())
                try:
                    found = await reader.getmany(place, timeout_ms=int(left * 1000), max_records=1)
                except _UNREADABLE:
                    continue
                reader.pause(place)
                reader.seek(place, offsets[place])  # drops the rest of what was unpacked
                for record in found.get(place, ()):
                    if record.timestamp >= 0:
                        written[place] = record.timestamp / 1000
    return written


@contextmanager
def _assigned(reader: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> Iterator[None]:
    """Let `reader` read these partitions from these offsets on."""
    reader.assign(list(offsets))
    try:
        for place, offset in offsets.items():
            reader.seek(place, offset)
        yield
    finally:
        reader.unsubscribe()


MOST: Final = 512
"""Marks that a partition keeps; beyond that, every second one is dropped, and the bounds get coarser."""


class Waiting:
    """How long the oldest record that a group has not read has been in its log.

    Each look notes the ends of the logs. A record at the group's position was not there at the last look that found the
    log's end at or before it, so it is at most that old. If there was no such look, the record was there at the first,
    and is at least as old as that.
    """

    def __init__(self) -> None:
        self._marks: dict[Place, deque[tuple[float, int]]] = {}
        self._written: dict[Place, tuple[int, float]] = {}

    def unknown(self, topics: Mapping[str, TopicPositions]) -> dict[Place, int]:
        """Partition → offset of the oldest waiting record, where its time was not read yet."""
        return {
            place: at.next
            for place, at in _partitions(topics)
            if at.lag and self._written.get(place, (None,))[0] != at.next
        }

    def look(
        self, topics: Mapping[str, TopicPositions], now: float, ages: Mapping[Place, float] | None = None
    ) -> Mapping[str, float]:
        """Topic → seconds that its oldest record has waited, 0 where none does.

        Args:
            now: monotonic.
            ages: of those that were `unknown`, their age by their timestamp; left out where it could not be read.
        """
        oldest = dict.fromkeys(topics, 0.0)
        for place, at in _partitions(topics):
            if ages is not None and place in ages:
                self._written[place] = (at.next, now - ages[place])
            oldest[place[0]] = max(oldest[place[0]], self._age(place, at, now))
        return oldest

    def _age(self, place: Place, at: PartitionPositions, now: float) -> float:
        marks = self._marks.setdefault(place, deque())
        if marks and at.end < marks[-1][1]:
            marks.clear()  # the log was recreated
            self._written.pop(place, None)
        # The last mark at or before the group's position is kept: the waiting records came after it.
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

    def _bounded(self, place: Place, at: PartitionPositions, mark: tuple[float, int] | None, now: float) -> float:
        offset, written = self._written.get(place, (None, 0.0))
        known = max(0.0, now - written) if offset == at.next else None
        if mark is None:
            return known or 0.0
        bound = now - mark[0]
        if known is None:
            return bound
        return min(known, bound) if mark[1] <= at.next else max(known, bound)


def _partitions(topics: Mapping[str, TopicPositions]) -> Iterator[tuple[Place, PartitionPositions]]:
    for topic, positions in topics.items():
        for number, at in positions.partitions.items():
            yield (topic, number), at


class Progress:
    """Which records were returned, and which of them are done, for the assigned partitions: pure.

    A commit means that everything below it is done, so a record that is still being claimed holds back those behind it
    in its partition. A commit never goes back.
    """

    def __init__(self) -> None:
        self._partitions: dict[Place, _Partition] = {}

    def assign(self, partitions: Iterable[Place]) -> None:
        """Hold exactly these, from scratch: what was returned before no longer counts (it is delivered again)."""
        self._partitions = {partition: _Partition() for partition in partitions}

    def returned(self, partition: Place, *offsets: int) -> None:
        """Note that records were returned to the caller; the offsets increase."""
        held = self._partitions.get(partition)
        if held is None:
            return
        if held.outstanding and offsets[0] <= held.outstanding[-1]:  # the client went back, to the commit or before it
            held.outstanding.clear()
            held.done.clear()
        held.outstanding += offsets
        held.position = offsets[-1] + 1

    def position(self, partition: Place) -> int | None:
        """The offset behind the last record that was returned; None: none was, since `assign`."""
        held = self._partitions.get(partition)
        return None if held is None else held.position

    def done(self, partition: Place, offset: int) -> None:
        """Note that a record needs no redelivery; one that was not returned since `assign` is ignored."""
        held = self._partitions.get(partition)
        if held is None or not held.outstanding or not held.outstanding[0] <= offset <= held.outstanding[-1]:
            return
        if held.outstanding[0] == offset and not held.done:  # as a rule
            held.outstanding.popleft()
            held.next = offset + 1
            return
        held.done.add(offset)
        while held.outstanding and held.outstanding[0] in held.done:
            first = held.outstanding.popleft()
            held.done.discard(first)
            held.next = first + 1

    def passed(self, partition: Place, position: int) -> bool:
        """Note that the client has no records left below `position`; whether a commit can advance by that."""
        held = self._partitions.get(partition)
        if held is None or held.outstanding or position <= max(held.next or 0, held.committed or 0):
            return False
        held.next = position
        return True

    def begin_at(self, partition: Place, offset: int) -> None:
        """Commit `offset`, the start of the partition's log, since the group has no (valid) commit."""
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
        """Note that Kafka has accepted these."""
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
