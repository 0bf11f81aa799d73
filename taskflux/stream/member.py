"""One membership of a consumer group: an AIOKafkaConsumer, what it has handed out, and what is committed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition

from taskflux.stream.errors import TROUBLE, KafkaUnavailable, error_name
from taskflux.stream.positions import PartitionPositions, read_positions
from taskflux.stream.progress import Progress

log = logging.getLogger(__name__)

_COMMIT_INTERVAL = 0.1
_COMMIT_TIMEOUT = 5.0
_REVOKE_TIMEOUT = 2.0
_LEAVE_TIMEOUT = 4.0


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ConsumerHooks:
    """Called on the loop, must not block; for metrics.

    `on_assigned` gets the number of partitions now held (a rebalance has ended), `on_commit_failed` and `on_error` a
    bounded error name (neither loses anything).
    """

    on_assigned: Callable[[int], None] = _ignore
    on_commit_failed: Callable[[str], None] = _ignore
    on_error: Callable[[str], None] = _ignore


class Member:
    """A membership from `join` to `leave`; made from `options`, not used again."""

    def __init__(self, options: dict[str, Any], topics: Collection[str], hooks: ConsumerHooks, epoch: int) -> None:
        self.epoch = epoch
        self.consumer = AIOKafkaConsumer(**options)
        self.progress = Progress()
        self._group: str = options["group_id"]
        self._hooks = hooks
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
            self._hooks.on_commit_failed(error_name(error))
            return False
        return True

    def given(self, partitions: Collection[TopicPartition]) -> None:
        """A rebalance has given these to this member."""
        self.progress.assign((tp.topic, tp.partition) for tp in partitions)
        self._starts_wanted = True
        self._noted.set()
        self._hooks.on_assigned(len(partitions))

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
            self._hooks.on_error(error_name(error))
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
