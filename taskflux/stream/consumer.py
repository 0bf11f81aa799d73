"""Consuming records: one group, its topic, and offsets that are committed once the caller is done with them.

A new group commits its partitions' starts when they are assigned to a member: for KEDA, the lag of a partition without
a commit is its end offset (keda#5274). A topic that was recreated is read from its start.

A broker lets the first member of an empty group wait in case others follow (`group.initial.rebalance.delay.ms`, 3 s
unless it is set). That member takes a first look meanwhile: it reads from the group's commits on, commits nothing, and
gets the same records again once it has joined. Their tasks are claimed by then.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final
from uuid import UUID

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import ConsumerStoppedError

from taskflux.stream import internals
from taskflux.stream.client import TROUBLE, KafkaUnavailable, Link, consumer_options, credentials, error_name
from taskflux.stream.cluster import Clients, Cluster
from taskflux.stream.envelope import Record
from taskflux.stream.internals import BoundedConsumer, topic_metadata
from taskflux.stream.positions import Progress, read_positions
from taskflux.stream.record_batches import BROKEN, record_of
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import Place
from taskflux.telemetry import metrics

log = logging.getLogger(__name__)

_WATCH_INTERVAL: Final = 2.0
_JOIN_TIMEOUT: Final = 60.0
_MAX_BACKOFF: Final = 5.0
_LOOK_AFTER: Final = 0.15
"""Seconds that joining may take until a first look begins; without the broker's delay, it is done by then."""
_LOOK: Final = 0.1
"""Seconds that one request of a first look lasts at most: the group may have been joined meanwhile."""
_LOOK_RECORDS: Final = 500
"""Records after which a first look ends: each of them is read twice."""
_COMMIT_INTERVAL: Final = 0.1
_COMMIT_TIMEOUT: Final = 5.0
_REVOKE_TIMEOUT: Final = 2.0
_LEAVE_TIMEOUT: Final = 4.0
_STALLED_AFTER: Final = 30.0
_ASKED_WITHIN: Final = 5.0
"""Seconds between two requests for records, while they are asked for at all."""
_GRACE: Final = 0.1
"""Seconds that a fetch may exceed its own timeout; a rebalance would hold it for longer."""


class Consumer:
    """Consumes records of `topic` for `group`.

    `start` returns at once, whether Kafka is up or down: joining, and joining again after a broker has lost its log,
    goes on in the background. One caller fetches. `note_done` may be called from anywhere on the loop, in any order;
    every record that was fetched has to be noted sooner or later, or its partition's commits do not advance.
    """

    def __init__(self, settings: KafkaSettings, group: str, topic: str) -> None:
        self._settings = settings
        self._group = group
        self._topic = topic
        self._cluster = Cluster(settings)
        self._link = Link(settings)
        metrics.REBALANCES.zeros()
        self._member: _Member | None = None
        self._first_look: _FirstLook | None = None
        self._joined = asyncio.Event()
        self._readable = asyncio.Event()  # joined, or taking a first look
        self.missing = asyncio.Event()
        """Set when the topic was looked for and does not exist."""
        self._broken = asyncio.Event()
        self._fetching = asyncio.Lock()
        self._epoch = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to join."""
        self._task = asyncio.create_task(self._run(), name="kafka-consumer")

    async def stop(self) -> None:
        """Commit what has been noted and leave the group; takes some seconds at most."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        await self._cluster.close()

    @property
    def assigned(self) -> frozenset[Place]:
        """(topic, partition) held now; empty while not a member."""
        return self._member.assigned if self._member is not None else frozenset()

    async def wait_joined(self) -> None:
        """Return once this consumer is a member with its partitions assigned; without a limit of its own."""
        await self._joined.wait()

    async def fetch(self, max_records: int, timeout: float) -> list[Record]:
        """Up to `max_records`, in order within a partition; empty after about `timeout` seconds, or while not a member.

        Raises no error of Kafka's.
        """
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()  # a bug: raise it
        member = None
        try:
            async with asyncio.timeout(timeout + _GRACE):
                await self._readable.wait()
            async with self._fetching:
                if not self._joined.is_set() and (look := self._first_look) is not None:
                    return await look.take(max_records, min(timeout, _LOOK))
                member = self._member
                return await member.take(max_records, timeout) if member is not None and self._joined.is_set() else []
        except TimeoutError:
            return []
        except (*TROUBLE, ConsumerStoppedError) as error:
            if member is not None and member is self._member:
                log.debug("the membership has ended", extra={"error": error_name(error)})
                self._joined.clear()
                self._readable.clear()
                self._broken.set()
            return []

    def note_done(self, records: Iterable[Record]) -> None:
        """These need no redelivery: commit soon, in the background."""
        member = self._member
        if member is not None:
            for record in records:
                if record.epoch == member.epoch:
                    member.progress.done((record.topic, record.partition), record.offset)
            member.noted.set()

    async def commit(self) -> None:
        """Commit what has been noted now. What Kafka refuses (a rebalance) is dropped: versions fence the repeats."""
        if self._member is not None:
            await self._member.commit()

    async def _run(self) -> None:
        failures = 0
        try:
            while True:
                log_id = await self._join()
                if log_id is not None and self._member is not None:
                    failures = 0
                    await self._watch(self._member, log_id)
                await self._leave()
                if log_id is None:
                    failures += 1
                    await asyncio.sleep(min(0.2 * 2.0 ** min(failures, 8), _MAX_BACKOFF) * random.uniform(0.5, 1.0))
        finally:
            await self._leave()

    async def _join(self) -> UUID | None:
        """Become a member; the id of the log that is read from now on, or None."""
        since = time.monotonic()
        try:
            log_id = await self._log_id()
            if log_id is None:
                log.debug("a topic does not exist", extra={"topic": self._topic})
                self.missing.set()
                return None
            self._epoch += 1
            self._member = _Member(self._settings, self._group, self._topic, self._epoch)
            self._broken.clear()
            async with self._looking(), asyncio.timeout(_JOIN_TIMEOUT):
                await self._member.join()
        except (*TROUBLE, KafkaUnavailable) as error:
            log.debug("the group cannot be joined", extra={"error": error_name(error)})
            if not isinstance(error, KafkaUnavailable):  # which was already reported
                self._link.failed(error, since)
            return None
        self._link.works()
        self._joined.set()
        self._readable.set()
        return log_id

    @asynccontextmanager
    async def _looking(self) -> AsyncIterator[None]:
        """Take a first look meanwhile. The embedded broker holds nobody back: its joins are slow by themselves."""
        if self._settings.tansu:
            yield
            return
        looking = asyncio.create_task(self._look(), name="kafka-first-look")
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait((looking,))

    async def _look(self) -> None:
        """While joining takes its time, let `fetch` read without the group, if nobody else works for it."""
        await asyncio.sleep(_LOOK_AFTER)
        try:
            found = await self._cluster.ask(self._unread)
            if found is None:
                return
            self._first_look = look = _FirstLook(self._settings)
            try:
                await look.start(found)
                self._readable.set()
                await asyncio.get_running_loop().create_future()  # until it is cancelled: the group is joined
            finally:
                self._first_look = None
                if not self._joined.is_set():
                    self._readable.clear()
                async with self._fetching:
                    await look.stop()
        except (*TROUBLE, KafkaUnavailable) as error:
            log.debug("no first look is taken", extra={"error": error_name(error)})

    async def _unread(self, clients: Clients) -> Mapping[TopicPartition, int] | None:
        """What the group reads next in each partition; None if it has other members than this one."""
        if await internals.members(await clients.admin(), self._group) != 1:
            return None
        found = (await read_positions(clients, {self._topic: self._group}, tansu=self._settings.tansu)).get(self._topic)
        if found is None:
            return None
        return {TopicPartition(self._topic, number): at.next for number, at in found.partitions.items()}

    async def _leave(self) -> None:
        self._joined.clear()
        self._readable.clear()
        member, self._member = self._member, None
        if member is not None:
            await member.leave()

    async def _watch(self, member: _Member, log_id: UUID) -> None:
        """Return when the consumer has to join again."""
        while True:
            try:
                async with asyncio.timeout(_WATCH_INTERVAL):
                    await self._broken.wait()
                return
            except TimeoutError:
                pass
            if credentials(self._settings) != member.credentials:
                # The client keeps those that it was made with, for every connection that it will have to open.
                log.info("the credentials for Kafka were renewed, joining again", extra={"topic": self._topic})
                return
            try:
                found = await self._log_id()
            except KafkaUnavailable:
                continue  # the client reconnects by itself
            if member.stalled(time.monotonic()):
                log.warning("the Kafka client has stopped fetching, joining again", extra={"topic": self._topic})
                return
            if found is not None and found != log_id:
                log.warning("a topic was recreated, reading it from its start", extra={"topic": self._topic})
                self._joined.clear()
                self._readable.clear()
                self._epoch += 1
                async with self._fetching:  # a running fetch would return records from beyond the new positions
                    if not await member.start_over(self._epoch):
                        continue
                log_id = found
            self._joined.set()
            self._readable.set()

    async def _log_id(self) -> UUID | None:
        async def ask(clients: Clients) -> UUID | None:
            found = (await topic_metadata(await clients.plain(), [self._topic])).get(self._topic)
            return None if found is None else found.log_id

        return await self._cluster.ask(ask)


class _Member(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no type marker
    """A membership from `join` to `leave`, not used again."""

    def __init__(self, settings: KafkaSettings, group: str, topic: str, epoch: int) -> None:
        self.epoch = epoch
        self.credentials = credentials(settings)
        self.progress = Progress()
        self.noted = asyncio.Event()
        self._tansu = settings.tansu
        self._consumer = BoundedConsumer(
            **consumer_options(settings), group_id=group, partition_assignment_strategy=(RoundRobinPartitionAssignor,)
        )
        self._pattern = f"^{re.escape(topic)}$"
        self._empty = False
        self._polled: tuple[int | None, float] = (None, 0.0)
        self._asked = 0.0  # when records were last asked for
        self._starts_wanted = False
        self._recreated = False
        self._committing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._refresh_metadata()

    async def join(self) -> None:
        """Return with partitions assigned. Raises KafkaError, OSError; call `leave` in any case."""
        await self._consumer.start()
        self._polled = (None, time.monotonic())
        self._task = asyncio.create_task(self._commit_in_background(), name="kafka-commit")

    async def leave(self) -> None:
        """Commit what is noted and leave the group, in bounded time; raises no error of Kafka's."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            await self.commit(_REVOKE_TIMEOUT)
        await internals.stop(self._consumer, _LEAVE_TIMEOUT, tansu=self._tansu)

    @property
    def assigned(self) -> frozenset[Place]:
        """(topic, partition) held now."""
        return frozenset(self._consumer.assignment())

    def stalled(self, now: float) -> bool:
        """Whether the client has silently stopped fetching: it has no records left, and no broker has answered a fetch
        for a while. `now` is monotonic.

        A client that holds records that were not requested yet also stops fetching.
        """
        polls = [self._consumer.last_poll_timestamp(place) for place in self._consumer.assignment()]
        newest = max((poll for poll in polls if poll is not None), default=None)
        if not polls or not self._empty or newest != self._polled[0] or now - self._asked > _ASKED_WITHIN:
            self._polled = (newest, now)
        return now - self._polled[1] > _STALLED_AFTER

    async def take(self, max_records: int, timeout: float) -> list[Record]:
        """Up to `max_records`.

        Raises TimeoutError while a rebalance holds it, and KafkaError: then the consumer has to join again.
        """
        self._asked = time.monotonic()
        try:
            async with asyncio.timeout(timeout + _GRACE):
                found = await self._consumer.getmany(timeout_ms=int(timeout * 1000), max_records=max_records)
        except BROKEN as error:
            log.debug("a record cannot be parsed", extra={"error": error_name(error)})
            self._consumer.look_closely()
            await self._rewind()
            return []
        self._empty = not found
        if not found and not self._starts_wanted:
            await self._pass_over()
        records = list[Record]()
        for place, those in found.items():
            records += [record_of(each, self.epoch) for each in those]
            self.progress.returned(place, *[each.offset for each in those])
        return records

    async def _pass_over(self) -> None:
        """Also commit offsets without a record to return: aborted records, transaction markers. KEDA counts them."""
        with suppress(TimeoutError, *TROUBLE):
            async with asyncio.timeout(0.0):  # a position is known, or a fetch will find it
                for place in self._consumer.assignment():
                    if self.progress.passed(place, await self._consumer.position(place)):
                        self.noted.set()

    async def commit(self, timeout: float = _COMMIT_TIMEOUT) -> bool:
        """Commit what has moved; False where Kafka refused or was late."""
        try:
            async with asyncio.timeout(timeout), self._committing:
                offsets = self.progress.to_commit()
                if offsets:
                    await self._consumer.commit({TopicPartition(*place): at for place, at in offsets.items()})
                    self.progress.committed(offsets)
        except TROUBLE as error:
            # Usually a rebalance; another member that gets the records again finds their versions used up.
            metrics.COMMITS_FAILED.labels(error_name(error)).inc()
            return False
        return True

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """A rebalance begins: commit, so that the next owner starts where this one stopped."""
        if revoked:
            await self.commit(_REVOKE_TIMEOUT)
            self.progress.assign(())

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """A rebalance has assigned these to this member."""
        self.progress.assign(assigned)
        self._starts_wanted = True
        self.noted.set()
        metrics.REBALANCES.labels().inc()

    async def start_over(self, epoch: int) -> bool:
        """Read a recreated topic from its start; nothing may be fetched meanwhile, and records fetched before belong to
        another epoch. False: try again.

        A member that saw the topic deleted has no partitions, and starts over once they are assigned again: the group
        may still have commits of the former log.
        """
        self.epoch = epoch
        held = self.assigned
        self._recreated = not held
        self.progress.assign(held)
        self._refresh_metadata()  # the new topic may have other partitions and leaders
        try:
            async with asyncio.timeout(_COMMIT_TIMEOUT):
                starts = await self._starts(held)
        except TROUBLE as error:
            log.debug("the positions could not be read", extra={"error": error_name(error)})
            return False
        if held != self.assigned:
            return False
        for place, start in starts.items():
            self._consumer.seek(place, start)
            self.progress.begin_at(place, start)
        self.noted.set()
        return True

    async def _rewind(self) -> None:
        """Seek to behind the records that were returned: a `getmany` that raises loses records of other partitions."""
        for place in self._consumer.assignment():
            position = self.progress.position(place)
            if position is None:
                position = await self._consumer.committed(place)
            if position is None:
                await self._consumer.seek_to_beginning(place)
            else:
                self._consumer.seek(place, position)

    async def _commit_in_background(self) -> None:
        while True:
            await self.noted.wait()
            self.noted.clear()
            settled = await self._note_starts() if self._starts_wanted else True
            committed = await self.commit()
            if not (settled and committed):
                self.noted.set()
            await asyncio.sleep(_COMMIT_INTERVAL if settled and committed else 1.0)

    async def _note_starts(self) -> bool:
        """Have the log's start committed if the group has no commit, or one beyond the log's end. False: try again.

        A commit beyond the end belongs to a former log, and not every broker (Tansu) answers a fetch there with
        OffsetOutOfRange.
        """
        held = self.assigned
        try:
            async with asyncio.timeout(_COMMIT_TIMEOUT):
                places = [TopicPartition(*place) for place in held]
                commits = await internals.committed(self._consumer, places)
                self._begin(commits)
                starts = await self._starts(held)
        except TROUBLE as error:
            log.debug("the positions could not be read", extra={"error": error_name(error)})
            return False
        if held != self.assigned:
            return False
        known = True
        for place, commit in commits.items():
            end = self._consumer.highwater(TopicPartition(*place))
            if commit is None:
                self.progress.begin_at(place, starts[place])
            elif self._recreated:
                self._consumer.seek(TopicPartition(*place), starts[place])
                self.progress.begin_at(place, starts[place])
            elif end is None:
                known = False  # no broker has answered a fetch yet
            elif commit > end and self.progress.position(place) is None:
                self._consumer.seek(TopicPartition(*place), starts[place])
                self.progress.begin_at(place, starts[place])
        self._starts_wanted, self._recreated = not known, self._recreated and not held
        return known

    def _begin(self, commits: Mapping[Place, int | None]) -> None:
        """Fetch from these commits on: the client would ask for the commit of each partition first, one by one."""
        for place, commit in commits.items():
            untouched = self.progress.position(place) is None and self._consumer.highwater(place) is None
            if commit is not None and untouched and not self._recreated and place in self.assigned:
                self._consumer.seek(TopicPartition(*place), commit)

    async def _starts(self, held: Iterable[Place]) -> dict[TopicPartition, int]:
        """Where the logs of these partitions begin. Raises KafkaError."""
        starts: dict[TopicPartition, int] = await self._consumer.beginning_offsets([TopicPartition(*at) for at in held])
        return starts

    def _refresh_metadata(self) -> None:
        """Subscribe, and make the client refresh its metadata.

        By a pattern, since a subscription by name creates the topic, even after it was deleted.
        """
        self._consumer.subscribe(pattern=self._pattern, listener=self)


class _FirstLook:
    """Reads a topic's records from given offsets on, without being a member of a group."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._consumer = BoundedConsumer(**consumer_options(settings))
        self._left = _LOOK_RECORDS

    async def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Connect. Raises KafkaError, OSError; call `stop` in any case."""
        await self._consumer.start()
        self._consumer.assign(list(offsets))
        for place, offset in offsets.items():
            self._consumer.seek(place, offset)

    async def stop(self) -> None:
        await internals.stop(self._consumer, _LEAVE_TIMEOUT)

    async def take(self, max_records: int, timeout: float) -> list[Record]:
        """Up to `max_records`, and none after the last one that may be read twice, or after an error."""
        if not self._left:
            await asyncio.sleep(timeout)
            return []
        try:
            found = await self._consumer.getmany(
                timeout_ms=int(timeout * 1000), max_records=min(max_records, self._left)
            )
        except (*BROKEN, *TROUBLE) as error:
            log.debug("the first look ends", extra={"error": error_name(error)})
            self._left = 0  # the member looks more closely, or finds the same trouble, which it reports
            return []
        records = [record_of(each, 0) for those in found.values() for each in those]
        self._left -= len(records)
        return records
