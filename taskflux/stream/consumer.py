"""Taking records: one group, its topics, and offsets that are committed once the caller is done with them."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import ConsumerStoppedError

from taskflux.stream.client import TROUBLE, Cluster, KafkaUnavailable, connection_options, error_name
from taskflux.stream.envelope import Record
from taskflux.stream.member import UNREADABLE, Member, rewind, step_over
from taskflux.stream.protocol import topic_metadata
from taskflux.stream.settings import KafkaSettings
from taskflux.telemetry import metrics

log = logging.getLogger(__name__)

_WATCH_INTERVAL = 2.0
_JOIN_TIMEOUT = 60.0
_MAX_BACKOFF = 5.0
_IDLE_AFTER = 5.0
_GRACE = 0.1
"""Seconds that a fetch may outlast its own timeout; longer than that a rebalance would hold it."""
_DAY_MS = 86_400_000
_PARTITION_FETCH_BYTES = 1_048_576


class Consumer:
    """Takes records for `group` from `topics`.

    `start` returns at once, Kafka up or down: joining, and joining again after a broker has lost its log, go on in the
    background. One caller fetches; `note_done` may come from anywhere on the loop, in any order, and every record
    that was fetched has to be noted sooner or later: one that is not holds back its partition's commits.
    """

    def __init__(self, settings: KafkaSettings, group: str, topics: Sequence[str]) -> None:
        self._topics = tuple(topics)
        metrics.REBALANCES.zeros()
        self._options = _options(settings, group)
        self._busy_wait = settings.fetch_max_wait_ms
        self._idle_wait = settings.fetch_idle_wait_ms or settings.fetch_max_wait_ms
        self._cluster = Cluster(settings)
        self._member: Member | None = None
        self._joined = asyncio.Event()
        self._broken = asyncio.Event()
        self._fetching = asyncio.Lock()
        self._epoch = 0
        self._last_record = time.monotonic()
        self._unreadable = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to join."""
        self._task = asyncio.create_task(self._run(), name="kafka-consumer")

    async def stop(self) -> None:
        """Commits what has been noted and leaves the group; some seconds at most."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        await self._cluster.close()

    @property
    def assigned(self) -> frozenset[tuple[str, int]]:
        """(topic, partition) held now; empty while not a member."""
        return self._member.assigned if self._member is not None else frozenset()

    async def wait_joined(self) -> None:
        """Returns once this consumer is a member with its partitions assigned (may be never: bound it)."""
        await self._joined.wait()

    async def fetch(self, max_records: int, timeout: float) -> list[Record]:
        """Up to `max_records`, in order within a partition; empty after about `timeout` seconds, or while not a member.

        Never raises for Kafka's trouble.
        """
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()  # a bug: let it be seen
        member = None
        try:
            async with asyncio.timeout(timeout + _GRACE):
                await self._joined.wait()
            async with self._fetching:
                member = self._member
                if member is None or not self._joined.is_set():
                    return []
                return await self._fetch(member, max_records, timeout)
        except TimeoutError:
            return []
        except (*TROUBLE, ConsumerStoppedError) as error:
            self._replace(member, error)
            return []

    def note_done(self, records: Iterable[Record]) -> None:
        """These need no redelivery: commit soon, in the background."""
        member = self._member
        if member is not None:
            member.note_done((record[0], record[1], record[2]) for record in records if record.epoch == member.epoch)

    async def commit(self) -> None:
        """Commit what has been noted now. What Kafka refuses (a rebalance) is dropped: versions fence the repeats."""
        if self._member is not None:
            await self._member.commit()

    async def _fetch(self, member: Member, max_records: int, timeout: float) -> list[Record]:
        if not self._unreadable:
            async with asyncio.timeout(timeout + _GRACE):
                found = await self._take(member, max_records, timeout)
        if self._unreadable:  # not to be cut short
            found = await self._step_over(member, max_records)
        self._adapt(member, bool(found))
        for record in found:
            member.progress.handed((record.topic, record.partition), record.offset)
        return found

    async def _take(self, member: Member, max_records: int, timeout: float) -> list[Record]:
        try:
            found = await member.consumer.getmany(timeout_ms=int(timeout * 1000), max_records=max_records)
        except UNREADABLE as error:
            log.debug("a record cannot be read", extra={"error": error_name(error)})
            self._unreadable = True
            return []
        return [_record(record, member.epoch) for records in found.values() for record in records]

    async def _step_over(self, member: Member, max_records: int) -> list[Record]:
        try:
            await rewind(member.consumer, member.progress)
            records, skipped = await step_over(member.consumer, max_records)
        except BaseException as error:
            self._replace(member, error)
            raise
        self._unreadable = not skipped and bool(records)
        now = int(time.time() * 1000)
        return [_record(record, member.epoch) for record in records] + [
            Record(topic, partition, offset, now, None, None, epoch=member.epoch, unreadable=reason)
            for topic, partition, offset, reason in skipped
        ]

    def _adapt(self, member: Member, found: bool) -> None:
        """Ask a broker that answers an empty fetch late more often while there is work, and less when there is none."""
        now = time.monotonic()
        if found:
            self._last_record = now
        idle = now - self._last_record > _IDLE_AFTER
        member.consumer._fetcher._fetch_max_wait_ms = self._idle_wait if idle else self._busy_wait

    def _replace(self, member: Member | None, error: BaseException) -> None:
        if member is not None and member is self._member:
            log.debug("the membership is over", extra={"error": error_name(error)})
            self._joined.clear()
            self._broken.set()

    async def _run(self) -> None:
        failures = 0
        try:
            while True:
                log_ids = await self._join()
                if log_ids is None:
                    failures += 1
                    await asyncio.sleep(min(0.2 * 2.0 ** min(failures, 8), _MAX_BACKOFF) * random.uniform(0.5, 1.0))
                    continue
                failures = 0
                if self._member is not None:
                    await self._watch(self._member, log_ids)
                await self._leave()
        finally:
            await self._leave()

    async def _join(self) -> dict[str, UUID] | None:
        """Become a member; the ids of the logs that are read from here on, or None."""
        try:
            log_ids = await self._log_ids()
        except KafkaUnavailable as error:
            log.debug("the group cannot be joined", extra={"error": error_name(error)})
            return None
        if len(log_ids) < len(set(self._topics)):
            log.debug("a topic does not exist", extra={"topics": self._topics})
            return None
        self._epoch += 1
        self._member = member = Member(self._options, self._topics, self._epoch)
        self._unreadable = False
        self._broken.clear()
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT):
                await member.join()
        except TROUBLE as error:
            log.debug("the group cannot be joined", extra={"error": error_name(error)})
            await self._leave()
            return None
        self._joined.set()
        return log_ids

    async def _leave(self) -> None:
        self._joined.clear()
        member, self._member = self._member, None
        if member is not None:
            await member.leave()

    async def _watch(self, member: Member, log_ids: dict[str, UUID]) -> None:
        """Returns when the membership has to begin anew."""
        while not await self._broke(member):
            try:
                found = await self._log_ids()
            except KafkaUnavailable:
                continue  # the client comes back by itself once the broker does
            lost = {topic for topic, log_id in found.items() if log_id != log_ids[topic]}
            if lost:
                log.warning("topics were recreated, reading them from their start", extra={"topics": sorted(lost)})
                self._joined.clear()
                self._epoch += 1
                async with self._fetching:  # a fetch under way would take records from behind the new positions
                    if not await member.start_over(lost, self._epoch):
                        continue
                log_ids |= found
            self._joined.set()

    async def _broke(self, member: Member) -> bool:
        """Waits for the next look at the topics, or less if the membership breaks."""
        try:
            async with asyncio.timeout(_WATCH_INTERVAL):
                await self._broken.wait()
        except TimeoutError:
            return member.dead
        return True

    async def _log_ids(self) -> dict[str, UUID]:
        metadata = await self._cluster.ask(lambda client: topic_metadata(client, self._topics))
        return {topic: found.log_id for topic, found in metadata.items()}


def _record(found: Any, epoch: int) -> Record:
    return Record(
        found.topic, found.partition, found.offset, found.timestamp, found.key, found.value, found.headers, epoch
    )


def _options(settings: KafkaSettings, group: str) -> dict[str, Any]:
    return connection_options(settings) | {
        "group_id": group,
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "partition_assignment_strategy": (RoundRobinPartitionAssignor,),
        "session_timeout_ms": int(settings.session_timeout * 1000),
        "heartbeat_interval_ms": int(settings.session_timeout * 1000 / 4),
        # A join is answered when the slowest member has joined, which may take the session timeout.
        "request_timeout_ms": int((max(settings.request_timeout, settings.session_timeout) + 5.0) * 1000),
        # Full slots stop fetching for as long as they are full; heartbeats go on in the background.
        "max_poll_interval_ms": _DAY_MS,
        "fetch_max_wait_ms": settings.fetch_max_wait_ms,
        "max_partition_fetch_bytes": max(_PARTITION_FETCH_BYTES, settings.max_record_bytes),
    }
