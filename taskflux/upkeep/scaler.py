"""KEDA's push scaler: how many pods each handler needs, told the moment that its first task waits.

Every relay serves it, whether it leads or not, and finds its answers by itself (`Needs`): one statement and a few
requests to Kafka each `LOOK`, for all streams together. What follows from that is decided by `replicas`, which is
pure. The protocol is KEDA's externalscaler.proto; docs/scaling.md says what KEDA makes of the answers.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Any, Final, NamedTuple

from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from taskflux.endpoints import ages
from taskflux.store.database import Database
from taskflux.store.errors import StoreError, level_of
from taskflux.store.upkeep import Demand, Needed
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.positions import Behind, Lags, Log, Positions
from taskflux.telemetry import metrics
from taskflux.worker.process import Process
from taskflux.worker.settings import ScalerSettings, WrongSettings

log = logging.getLogger(__name__)

LOOK: Final = 0.5
"""Seconds between two looks at what is needed, while anybody asks."""
AGAIN: Final = 1.0
"""Seconds after which `true` is sent again over a stream: KEDA drops what comes too early."""
HOLD: Final = 15.0
"""Seconds for which the last answer is good while a server is unreachable."""
FIRST: Final = 5.0
"""Seconds that a call waits for the first look at what it asks for."""
FORGET: Final = 120.0
"""Seconds after its last call that a queue is still looked at."""
MOST_QUEUES: Final = 1000
LARGEST: Final = 1e9  # of a trigger's numbers: the product of two is within PostgreSQL's bigint
MOST_PODS: Final = 100_000
RATE_WINDOW: Final = 60.0
"""Tasks beyond what the provider takes in these seconds call for no pods: others would only wait for its rate."""
LAST: Final = 2.0
"""Seconds that the last look and the streams may take to end when the process drains."""
RENEW: Final = 60.0
"""Seconds between two looks at whether the certificate's file has changed."""
METRIC: Final = "replicas"

_Call = Callable[[Stream[Any, bytes]], Awaitable[None]]


class Queue(NamedTuple):
    """What a trigger asks for. A threshold is tasks for each pod; None: they do not count.

    `rate` is tasks a second that the provider takes from all pods together.
    """

    task_type: str | None = None
    log: Log | None = None
    waiting: float | None = None
    running: float | None = None
    overdue: float | None = None
    most: int = 100
    rate: float | None = None

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> Queue:
        """From a trigger's metadata. Raises ValueError with a sentence."""
        topic, group = metadata.get("topic") or None, metadata.get("consumerGroup") or None
        if (topic is None) != (group is None):
            raise ValueError("topic and consumerGroup belong together: set both, or neither")
        queue = cls(
            metadata.get("taskType") or None,
            None if topic is None or group is None else Log(topic, group),
            _positive(metadata, "lagThreshold"),
            _positive(metadata, "runningThreshold"),
            _positive(metadata, "dueThreshold"),
            int(_positive(metadata, "maxReplicas") or 100),
            _positive(metadata, "rate"),
        )
        if queue.waiting is None and queue.running is None and queue.overdue is None:
            raise ValueError("set lagThreshold, runningThreshold or dueThreshold: nothing else says how many pods")
        if not 1 <= queue.most <= MOST_PODS:
            raise ValueError(f"maxReplicas must be a number from 1 to {MOST_PODS:,}")
        if queue.waiting is not None and queue.log is None:
            raise ValueError("lagThreshold needs topic and consumerGroup")
        if queue.running is not None and queue.task_type is None:
            raise ValueError("runningThreshold needs taskType")
        return queue


def _positive(metadata: Mapping[str, str], name: str) -> float | None:
    text = metadata.get(name, "")
    if text in ("", "0"):
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= LARGEST:
        raise ValueError(f"{name} must be a number above 0, and at most {LARGEST:,.0f}")
    return number


def replicas(queue: Queue, behind: Behind | None, needed: Needed, overdue: int) -> float:
    """How many pods `queue` needs: 0 for none, a fraction where less than one is busy. Pure.

    Args:
        behind: its lag and partitions; None without a topic.
        needed: what PostgreSQL says of its type.
        overdue: rows of the outbox that should have been published, of all types.
    """
    waiting = behind.lag if behind is not None else 0
    if needed.open:
        # A worker runs the probe that closes the circuit. Nothing else is published meanwhile.
        return 1.0 if waiting or needed.running or (needed.due and needed.probe_soon) else 0.0
    waiting += needed.due
    if queue.rate is not None:
        waiting = min(waiting, math.ceil(queue.rate * RATE_WINDOW))
    for_waiting = waiting / queue.waiting if queue.waiting else 0.0
    if behind is not None and queue.rate is None:
        for_waiting = _even(for_waiting, behind.partitions)
    need = max(
        for_waiting,
        needed.running / queue.running if queue.running else 0.0,
        overdue / queue.overdue if queue.overdue else 0.0,
    )
    return min(need, queue.most, behind.partitions if behind is not None else queue.most)


def _even(pods: float, partitions: int) -> float:
    """From one pod on, the next number that divides the partitions: others would have fewer than the rest."""
    if pods <= 1:
        return pods
    return float(next((each for each in range(1, partitions) if partitions % each == 0 and each >= pods), partitions))


class Needs:
    """Looks at what is needed, for all that ask. `clock` returns monotonic seconds."""

    def __init__(
        self, database: Database, positions: Positions, ahead: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._demand = Demand(database, ahead)
        self._positions = positions
        self._lags = Lags()
        self._clock = clock
        self._asked: dict[Queue, float] = {}
        self._open: Counter[Queue] = Counter()
        metrics.SCALER_STREAMS.labels().follow(self, lambda needs: needs._open.total())
        self._told: dict[Queue, tuple[float, float]] = {}
        self._looked = asyncio.Event()
        self._wanted = asyncio.Event()
        self._left = asyncio.Event()
        self._ended = asyncio.Event()

    @contextmanager
    def watched(self, queue: Queue) -> Iterator[None]:
        """While the block runs, `queue` is looked at."""
        self.ask(queue)
        self._open[queue] += 1
        try:
            yield
        finally:
            self._open[queue] -= 1
            self._asked[queue] = self._clock()
            self._left.set()

    def ask(self, queue: Queue) -> None:
        """Look at `queue` from now on, for `FORGET` seconds at least. Raises GRPCError if there are too many."""
        if queue not in self._asked and len(self._asked) >= MOST_QUEUES:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"more than {MOST_QUEUES} different triggers ask this relay")
        self._asked[queue] = self._clock()
        self._wanted.set()

    def known(self, queue: Queue) -> float | None:
        """The pods that `queue` needs, as of the last `HOLD` seconds; None: it is not known."""
        pods, at = self._told.get(queue, (0.0, -math.inf))
        return pods if self._clock() - at <= HOLD else None

    async def wait(self) -> None:
        """Until the next look has ended, or all looking."""
        await self._looked.wait()

    def over(self) -> bool:
        """Whether all looking has ended, by a fault too: `wait` returns at once from then on."""
        return self._ended.is_set()

    async def ended(self) -> None:
        """Until the last look has ended, and nothing is watched."""
        await self._ended.wait()
        while self._open.total():
            self._left.clear()
            await self._left.wait()

    async def keep_looking(self, process: Process) -> None:
        """Look until the process drains; then wake all that wait."""
        try:
            while not process.draining.is_set():
                if not self._asked:
                    self._wanted.clear()
                    await process.wait(self._wanted.wait())
                    continue
                began = self._clock()
                await self.look()
                await process.pause(max(0.0, began + LOOK - self._clock()))
        finally:
            self._ended.set()
            self._looked.set()

    async def look(self) -> None:
        """Look once at all that is asked for. What could not be seen stays as it was told last."""
        now = self._clock()
        for queue, at in list(self._asked.items()):
            if now - at > FORGET and not self._open[queue]:
                del self._asked[queue], self._open[queue]
                self._told.pop(queue, None)
        queues = list(self._asked)
        logs = {each.log for each in queues if each.log is not None}
        # Neither is cancelled when the other fails: a client of Kafka that is cancelled while it connects leaks.
        behind, needed = await asyncio.gather(
            self._positions.lags(logs, self._lags), self._demand.read(_limits(queues)), return_exceptions=True
        )
        for failed in (behind, needed):
            if isinstance(failed, KafkaUnavailable):  # its link has logged the outage, once
                log.debug("the push scaler waits for Kafka", extra={"error": str(failed)})
            elif isinstance(failed, StoreError):
                log.log(level_of(failed), "the push scaler waits for PostgreSQL", extra={"error": str(failed)})
            elif isinstance(failed, BaseException):
                raise failed
        if not isinstance(behind, BaseException) and not isinstance(needed, BaseException):
            self._tell(behind, needed, now)
        looked, self._looked = self._looked, asyncio.Event()
        looked.set()

    def _tell(self, behind: Mapping[Log, Behind], needed: Mapping[str | None, Needed], now: float) -> None:
        for queue in self._asked:
            if queue.log is not None and queue.log not in behind:
                continue  # it is read with one of the next looks, or does not exist
            of_type = needed.get(queue.task_type, Needed()) if queue.task_type is not None else Needed()
            lag = behind[queue.log] if queue.log is not None else None
            self._told[queue] = replicas(queue, lag, of_type, needed.get(None, Needed()).due), now


def _limits(queues: list[Queue]) -> dict[str | None, int]:
    """Type → how many of its due tasks are worth counting; None: of the overdue ones of all types."""
    limits: dict[str | None, int] = {}
    for each in queues:
        if each.task_type is not None:
            limits[each.task_type] = max(limits.get(each.task_type, 0), math.ceil((each.waiting or 0) * each.most))
        if each.overdue is not None:
            limits[None] = max(limits.get(None, 0), math.ceil(each.overdue * each.most))
    return limits


# The service --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(process: Process, database: Database, positions: Positions) -> AsyncIterator[int]:
    """Serve KEDA while the block runs; the port. Raises WrongSettings if it cannot listen there."""
    settings, host = process.settings.scaler, process.settings.http.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    needs = Needs(database, positions, settings.ahead_seconds)
    certificates = _Certificates(settings) if settings.tls_cert_file else None
    try:
        listening = socket.create_server((host, settings.port or 0), family=family, backlog=100)
    except OSError as error:
        raise WrongSettings(
            f"TASKFLUX_SCALER__PORT: cannot listen on {host}:{settings.port} ({error.strerror or error}): choose"
            " another, or 0 for any free port"
        ) from error
    server = Server([Scaler(process, needs)], codec=_Codec())
    renewing = process.background(certificates.keep_renewing(process)) if certificates else nullcontext()
    async with process.background(needs.keep_looking(process)), renewing:
        await server.start(sock=listening, ssl=None if certificates is None else certificates.context)
        try:
            yield int(listening.getsockname()[1])
            with suppress(TimeoutError):
                await asyncio.wait_for(needs.ended(), LAST)
        finally:
            server.close()  # not waited for: Python 3.12 would wait until every client has closed its connection


class Scaler:
    """The four calls of KEDA."""

    def __init__(self, process: Process, needs: Needs) -> None:
        self._process = process
        self._needs = needs

    def __mapping__(self) -> dict[str, Handler]:
        """What grpclib asks for: path → handler."""
        one, many = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        calls: tuple[tuple[str, _Call, Cardinality, type], ...] = (
            ("IsActive", self._is_active, one, _Ref),
            ("StreamIsActive", self._stream_is_active, many, _Ref),
            ("GetMetricSpec", self._get_metric_spec, one, _Ref),
            ("GetMetrics", self._get_metrics, one, _MetricsRequest),
        )
        return {
            f"/externalscaler.ExternalScaler/{name}": Handler(_counted(name, call), cardinality, request, bytes)
            for name, call, cardinality, request in calls
        }

    async def _is_active(self, stream: Stream[_Ref, bytes]) -> None:
        pods = await self._pods(_queue(await stream.recv_message()))
        await stream.send_message(_is_active_response(pods > 0))

    async def _get_metric_spec(self, stream: Stream[_Ref, bytes]) -> None:
        """Answered whatever PostgreSQL and Kafka do: KEDA makes no autoscaler without it."""
        self._needs.ask(_queue(await stream.recv_message()))
        await stream.send_message(_figure(1.0))

    async def _get_metrics(self, stream: Stream[_MetricsRequest, bytes]) -> None:
        request = await stream.recv_message()
        pods = await self._pods(_queue(None if request is None else request.ref))
        await stream.send_message(_figure(pods))

    async def _stream_is_active(self, stream: Stream[_Ref, bytes]) -> None:
        """Ends with OK when the process drains: after an error KEDA would wait longer before it asks another relay."""
        queue = _queue(await stream.recv_message())
        clock = asyncio.get_running_loop().time
        said, again_at = None, -math.inf
        with self._needs.watched(queue):
            while not (self._process.draining.is_set() or self._needs.over()):
                pods = self._needs.known(queue)
                active = None if pods is None else pods > 0
                if active is not None and (active != said or (active and clock() >= again_at)):
                    await stream.send_message(_is_active_response(active))
                    said, again_at = active, clock() + AGAIN - LOOK / 2
                await self._needs.wait()

    async def _pods(self, queue: Queue) -> float:
        """What is known, or is seen within `FIRST` seconds. Raises GRPCError."""
        self._needs.ask(queue)
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + FIRST
        while (pods := self._needs.known(queue)) is None:
            if clock() >= give_up_at or self._process.draining.is_set() or self._needs.over():
                raise GRPCError(Status.UNAVAILABLE, "PostgreSQL, Kafka or the topic cannot be read at the moment")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._needs.wait(), max(0.0, give_up_at - clock()))
        return pods


def _counted(name: str, call: _Call) -> _Call:
    async def counted(stream: Stream[Any, bytes]) -> None:
        outcome = "cancelled"
        try:
            await call(stream)
            outcome = "ok"
        except GRPCError as error:
            outcome = error.status.name.lower()
            raise
        finally:
            metrics.SCALER_CALLS.labels(name, outcome).inc()

    return counted


def _queue(ref: _Ref | None) -> Queue:
    try:
        return Queue.parse({} if ref is None else ref.metadata)
    except ValueError as error:
        raise GRPCError(Status.INVALID_ARGUMENT, f"the trigger's metadata: {error}") from None


class _Certificates:
    """The server's certificate, read again when its file changes; with a CA, clients must have one of that CA."""

    def __init__(self, settings: ScalerSettings) -> None:
        self._settings = settings
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=settings.tls_client_ca_file)
        if settings.tls_client_ca_file:
            self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.set_alpn_protocols(["h2"])
        self.changed = self._age()
        self.load()

    def load(self) -> None:
        """For connections from now on."""
        self.context.load_cert_chain(str(self._settings.tls_cert_file), self._settings.tls_key_file)
        if self._settings.tls_client_ca_file:
            self.context.load_verify_locations(self._settings.tls_client_ca_file)

    async def keep_renewing(self, process: Process) -> None:
        """Until the process drains."""
        while not process.draining.is_set():
            await process.pause(RENEW)
            self.renew()

    def renew(self) -> None:
        """Load what has changed since."""
        if (age := self._age()) == self.changed:
            return
        try:
            self.load()
        except OSError as error:  # half-written: the next look finds it whole
            log.warning("the push scaler's certificate could not be read again", extra={"error": str(error)})
            return
        self.changed = age
        log.info("the push scaler's certificate was renewed")

    def _age(self) -> tuple[int, ...]:
        return ages(self._settings.tls_cert_file, self._settings.tls_key_file, self._settings.tls_client_ca_file)


# Messages -----------------------------------------------------------------------------------------------------------
# externalscaler.proto has four that we read or write. Their code is shorter than protobuf's descriptors would be, and
# does not load it: https://protobuf.dev/programming-guides/encoding/

_VARINT, _FIXED64, _BYTES = 0, 1, 2


class _Codec(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        try:
            return message_type.decode(data)
        except (ValueError, IndexError):
            raise GRPCError(Status.INVALID_ARGUMENT, "the message cannot be read") from None


class _Ref(NamedTuple):
    """ScaledObjectRef, of which only the trigger's metadata matters."""

    metadata: Mapping[str, str]

    @classmethod
    def decode(cls, data: bytes) -> _Ref:
        entries = [dict(_fields(value)) for number, value in _fields(data) if number == 3]
        return cls({entry.get(1, b"").decode(): entry.get(2, b"").decode() for entry in entries})


class _MetricsRequest(NamedTuple):
    ref: _Ref

    @classmethod
    def decode(cls, data: bytes) -> _MetricsRequest:
        return cls(_Ref.decode(dict(_fields(data)).get(1, b"")))


def _is_active_response(active: bool) -> bytes:
    return bytes([1 << 3 | _VARINT, active])


def _figure(pods: float) -> bytes:
    """A GetMetricSpecResponse or a GetMetricsResponse, which have the same numbers: one metric and its figure."""
    name = METRIC.encode()
    metric = bytes([1 << 3 | _BYTES, len(name)]) + name + bytes([3 << 3 | _FIXED64]) + struct.pack("<d", pods)
    return bytes([1 << 3 | _BYTES, len(metric)]) + metric


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, value) of each field that has a length; others are passed over. Raises ValueError, IndexError."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                length, at = _varint(data, at)
                if at + length > len(data):
                    raise ValueError("a field ends after its message")
                yield key >> 3, data[at : at + length]
                at += length
            case _:
                raise ValueError("an unknown wire type")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise ValueError("a number that is too long")
