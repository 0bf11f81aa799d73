"""Which offsets may be committed: pure."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import UnsupportedCodecError

from taskflux.stream.client import TROUBLE, KafkaUnavailable, error_name
from taskflux.stream.positions import PartitionPositions, read_positions
from taskflux.telemetry import metrics

Place = tuple[str, int]
"""Topic and partition."""


class Progress:
    """What has been handed out and what of it is done, for the partitions held now.

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


UNREADABLE = (UnicodeDecodeError, UnsupportedCodecError)
"""What `getmany` raises for a header whose name is not UTF-8, or for a batch in a codec that is not installed; it
would raise it for ever."""

Skipped = tuple[str, int, int, str]
"""Topic, partition, offset, and why the record cannot be parsed."""

_WAIT_MS = 500


async def rewind(consumer: AIOKafkaConsumer, progress: Progress) -> None:
    """Back to behind what has been handed out: a `getmany` that raises forgets what it took from other partitions."""
    for tp in consumer.assignment():
        position = progress.position((tp.topic, tp.partition))
        if position is None:
            position = await consumer.committed(tp)
        if position is None:
            await consumer.seek_to_beginning(tp)
        else:
            consumer.seek(tp, position)


async def step_over(consumer: AIOKafkaConsumer, max_records: int) -> tuple[list[Any], list[Skipped]]:
    """Take records one by one up to the one at fault, in every partition, and seek behind it.

    Returns the client's records on the way and what was stepped over. Raises KafkaError; then, and when it is
    cancelled, what it has taken is lost: rejoin.
    """
    records: list[Any] = []
    skipped: list[Skipped] = []
    for tp in consumer.assignment():
        while len(records) < max_records:
            try:
                found = await consumer.getmany(tp, timeout_ms=_WAIT_MS, max_records=1)
            except UNREADABLE as error:
                skipped.append(await _skip(consumer, tp, error))
                break
            if not found:
                break
            records.extend(found[tp])
    return records, skipped


async def _skip(consumer: AIOKafkaConsumer, tp: TopicPartition, error: Exception) -> Skipped:
    offset = await consumer.position(tp)
    consumer.seek(tp, offset + 1)
    return tp.topic, tp.partition, offset, f"the client cannot parse the record: {error}"


log = logging.getLogger(__name__)

_COMMIT_INTERVAL = 0.1
_COMMIT_TIMEOUT = 5.0
_REVOKE_TIMEOUT = 2.0
_LEAVE_TIMEOUT = 4.0


class Member:
    """A membership from `join` to `leave`; made from `options`, not used again."""

    def __init__(self, options: dict[str, Any], topics: Collection[str], epoch: int) -> None:
        self.epoch = epoch
        self.consumer = AIOKafkaConsumer(**options)
        self.progress = Progress()
        self._group: str = options["group_id"]
        self._noted = asyncio.Event()
        self._starts_wanted = False
        self._committing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.consumer.subscribe(list(topics), listener=_Listener(self))

    async def join(self) -> None:
        """Returns with partitions assigned. Raises KafkaError, OSError; `leave` in any case."""
        await self.consumer.start()
        self._task = asyncio.create_task(self._commit_in_background(), name="kafka-commit")

    async def leave(self) -> None:
        """Commit what is noted and leave the group; bounded, never raises for Kafka's trouble."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            await self.commit(_REVOKE_TIMEOUT)
        await _close(self.consumer)

    @property
    def assigned(self) -> frozenset[tuple[str, int]]:
        """(topic, partition) held now."""
        return frozenset((tp.topic, tp.partition) for tp in self.consumer.assignment())

    @property
    def dead(self) -> bool:
        """Whether a background routine of the client has ended, which nothing would tell."""
        fetcher = self.consumer._fetcher
        return fetcher is not None and bool(fetcher.error_future.done())

    def note_done(self, records: Iterable[tuple[str, int, int]]) -> None:
        """(topic, partition, offset) that need no redelivery."""
        for topic, partition, offset in records:
            self.progress.done((topic, partition), offset)
        self._noted.set()

    async def commit(self, timeout: float = _COMMIT_TIMEOUT) -> bool:
        """Commit what has moved; False where Kafka refused or was late."""
        try:
            async with asyncio.timeout(timeout), self._committing:
                offsets = self.progress.to_commit()
                if offsets:
                    await self.consumer.commit({TopicPartition(*partition): at for partition, at in offsets.items()})
                    self.progress.committed(offsets)
        except TROUBLE as error:
            # A rebalance, mostly; whoever gets the records again finds their versions used up.
            metrics.COMMITS_FAILED.labels(error_name(error)).inc()
            return False
        return True

    def given(self, partitions: Collection[TopicPartition]) -> None:
        """A rebalance has given these to this member."""
        self.progress.assign((tp.topic, tp.partition) for tp in partitions)
        self._starts_wanted = True
        self._noted.set()
        metrics.REBALANCES.labels().inc()

    async def revoked(self, partitions: Collection[TopicPartition]) -> None:
        """A rebalance begins: commit, so that the next holder starts where this one stands."""
        if partitions:
            await self.commit(_REVOKE_TIMEOUT)
            self.progress.assign(())

    async def _commit_in_background(self) -> None:
        while True:
            await self._noted.wait()
            self._noted.clear()
            settled = await self._note_starts() if self._starts_wanted else True
            committed = await self.commit()
            if not (settled and committed):
                self._noted.set()
            await asyncio.sleep(_COMMIT_INTERVAL if settled and committed else 1.0)

    async def start_over(self, lost: Collection[str], epoch: int) -> bool:
        """Read the topics `lost` from their logs' start, and the others from their commits; nothing may be fetched
        meanwhile, and what was fetched before is of another epoch. False: ask again.
        """
        self.epoch = epoch
        held = self.assigned
        self.progress.assign(held)
        marks = await self._marks(held)
        if marks is None:
            return False
        self.consumer._client.force_metadata_update()  # the new topic may have other partitions and leaders
        for partition, mark in marks.items():
            fresh = mark.committed is None or mark.committed > mark.end or partition[0] in lost
            self.consumer.seek(TopicPartition(*partition), mark.start if fresh else mark.committed)
            if fresh:
                self.progress.begin_at(partition, mark.start)
        self._noted.set()
        return True

    async def _note_starts(self) -> bool:
        """Have the log's start committed where the group has no commit, or one beyond the log's end.

        KEDA takes a partition without a commit for one whose lag is the end offset (keda#5274). A commit beyond the
        end is of a log that is gone, and not every broker (Tansu) answers a fetch there with OffsetOutOfRange.
        """
        marks = await self._marks(self.assigned)
        if marks is None:
            return False
        for partition, mark in marks.items():
            if mark.committed is None:
                self.progress.begin_at(partition, mark.start)
            elif mark.committed > mark.end and self.progress.position(partition) is None:
                self.consumer.seek(TopicPartition(*partition), mark.start)
                self.progress.begin_at(partition, mark.start)
        self._starts_wanted = False
        return True

    async def _marks(self, held: frozenset[tuple[str, int]]) -> dict[tuple[str, int], PartitionPositions] | None:
        """Where the partitions held begin and end, and the group's commits; None: ask again."""
        topics = {topic: self._group for topic, _ in held}
        try:
            async with asyncio.timeout(_COMMIT_TIMEOUT):
                found = await read_positions(self.consumer._client, topics)
        except (*TROUBLE, KafkaUnavailable) as error:
            log.debug("the positions could not be read", extra={"error": error_name(error)})
            return None
        marks = {
            (topic, number): at
            for topic, positions in found.items()
            for number, at in positions.partitions.items()
            if (topic, number) in held
        }
        return marks if held == self.assigned and held == marks.keys() else None


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no type marker
    def __init__(self, member: Member) -> None:
        self._member = member

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._member.revoked(revoked)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._member.given(assigned)


async def _close(consumer: AIOKafkaConsumer) -> None:
    """Leave and close; where the brokers do not answer, end the client's tasks by force."""
    coordinator = consumer._coordinator
    if coordinator is not None and coordinator.generation == 0:
        # Tansu counts generations from 0, which aiokafka takes for no member: it would go without a word, and the
        # group wait for it for a whole session. The request to leave names no generation.
        coordinator.generation = 1
    try:
        async with asyncio.timeout(_LEAVE_TIMEOUT):
            await consumer.stop()
    except TROUBLE as error:
        log.debug("the consumer did not stop by itself (%s)", error_name(error))
    coordinator, fetcher = consumer._coordinator, consumer._fetcher  # they may have been made meanwhile
    if coordinator is not None:
        tasks = [coordinator._coordination_task, coordinator._heartbeat_task, coordinator._commit_refresh_task]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if fetcher is not None and not fetcher._closed:
        await fetcher.close()
    await consumer._client.close()
