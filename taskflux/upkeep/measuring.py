"""The figures that one process shows for all: depth, age, lag, workers, dead letters, circuits.

They come from the relay that leads: a handler that is scaled to zero shows nothing. Their cost grows with the backlog,
not with the history, and is at most `SHARE` of one connection: after a slow measurement, the next one comes later.
`docs/observability.md` has the figures.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from taskflux.store.database import Database
from taskflux.store.errors import StoreError
from taskflux.store.upkeep import Measured, Measures
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.positions import Positions, TopicPositions, Waiting
from taskflux.stream.topics import (
    Place,
    dead_letter_group,
    dead_letter_topic,
    router_group,
    task_group,
    task_topic,
)
from taskflux.telemetry import metrics
from taskflux.telemetry.instruments import Snapshot
from taskflux.worker.settings import Settings

log = logging.getLogger(__name__)

SHARE: Final = 0.02
"""The share of one connection's time that measuring takes at most: with a large backlog, it is done less often."""

DLQ: Final = "dlq"
ROUTER: Final = "router"
"""Used in place of a task type for topics that have none: neither can be the name of a type."""

_OF_POSTGRESQL: Final = tuple(each for each in metrics.LED if each not in (metrics.KAFKA_LAG, metrics.PARTITIONS))


@dataclass(frozen=True, slots=True)
class Queue:
    """A topic as its group sees it; `type` is its task type, or DLQ or ROUTER."""

    type: str
    topic: str
    group: str
    positions: TopicPositions


class Measuring:
    """Measures while its process leads."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        positions: Positions,
    ) -> None:
        self._settings = settings
        self._measures = Measures(database)
        self._positions = positions
        self._waiting = Waiting()
        self._classes: set[str] = set()
        self._types: list[str] = []
        self._measured: Measured | None = None
        self._read_again = float("-inf")

    async def keep_measuring(self) -> None:
        """Measure until cancelled: then another process leads, and shows the figures."""
        loop = asyncio.get_running_loop()
        self._waiting, self._read_again = Waiting(), float("-inf")
        try:
            while True:
                began = loop.time()
                await self.measure()
                metrics.MEASURE_SECONDS.labels().observe(loop.time() - began)
                await asyncio.sleep(max(0.0, began + self._settings.relay.measure_seconds - loop.time()))
        finally:
            _clear(*metrics.LED)

    async def measure(self) -> None:
        """Measure once: Kafka each time, PostgreSQL as often as `SHARE` allows.

        What cannot be measured is not shown: a gap is better than a stale figure.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._read_again:
            self._measured = await self._read(now)
        queues = await self._queues(self._types)
        self._show_queues(queues or [])
        ages = {} if queues is None else await self._ages(queues)
        if self._measured is not None:
            _show_oldest(self._measured, ages)

    async def _read(self, now: float) -> Measured | None:
        """Read the figures of PostgreSQL, and show them; None while it is unavailable."""
        try:
            measured = await self._measures.read()
        except StoreError as error:
            log.debug("PostgreSQL could not be measured", extra={"error": str(error)})
            _clear(*_OF_POSTGRESQL)
            return None
        self._read_again = now + (asyncio.get_running_loop().time() - now) / SHARE
        self._types = list(measured.types)
        metrics.ATTEMPTS.zeros(self._types, "expired")
        for counter in (metrics.REPEATS, metrics.REQUEUED, metrics.LEASES_SWEPT):
            counter.zeros(self._types)
        self._show(measured)
        metrics.MEASURED.show({(): time.time()})
        return measured

    async def _queues(self, types: list[str]) -> list[Queue] | None:
        """None while Kafka is unreachable."""
        prefix = self._settings.kafka.topic_prefix
        wanted = {task_topic(prefix, name): (name, task_group(prefix, name)) for name in types}
        wanted[dead_letter_topic(prefix)] = (DLQ, dead_letter_group(prefix))
        if self._settings.router.topic is not None:
            wanted[self._settings.router.topic] = (ROUTER, router_group(prefix))
        try:
            found = await self._positions.read_all({topic: group for topic, (_, group) in wanted.items()})
        except KafkaUnavailable as error:
            log.debug("Kafka could not be measured", extra={"error": str(error)})
            return None
        return [Queue(wanted[topic][0], topic, wanted[topic][1], positions) for topic, positions in found.items()]

    async def _ages(self, queues: list[Queue]) -> Mapping[str, float]:
        """Type → seconds that its oldest record has waited."""
        topics = {each.topic: each.positions for each in queues}
        written: Mapping[Place, float] = {}
        try:
            written = await self._positions.written_at(self._waiting.unknown(topics))
        except KafkaUnavailable as error:
            log.debug("the oldest records could not be read", extra={"error": str(error)})
        clock = time.time()
        since = {place: clock - seconds for place, seconds in written.items()}
        ages = self._waiting.look(topics, asyncio.get_running_loop().time(), since)
        return {each.type: ages[each.topic] for each in queues}

    def _show(self, measured: Measured) -> None:
        depths = {(each.type, each.state): each.tasks for each in measured.depths}
        metrics.DEPTH.show(_zeros(measured, metrics.WAITING_STATES) | depths)
        metrics.PARKED.show(_zeros(measured, metrics.PARKED_STATES) | dict(measured.parked))
        metrics.WORKERS.show({(name,): measured.workers.get(name, 0) for name in {*measured.types, *measured.workers}})
        dead_letters: dict[tuple[str, ...], float] = dict.fromkeys(((name,) for name in self._classes), 0.0)
        for error_class, count in measured.dead_letters.items():
            name = metrics.error_class(error_class)
            dead_letters[(name,)] = dead_letters.get((name,), 0.0) + count
            self._classes.add(name)  # 0 once all of them are replayed, so that an alert resolves
        metrics.OPEN_DEAD_LETTERS.show(dead_letters)
        providers = {provider: 0.0 for provider in measured.types.values() if provider is not None}
        circuits = providers | {each.provider: float(each.open) for each in measured.circuits}
        metrics.CIRCUIT_OPEN.show({(provider,): is_open for provider, is_open in circuits.items()})
        metrics.TYPE_INFO.show({(name, provider or ""): 1.0 for name, provider in measured.types.items()})
        metrics.CIRCUIT_SECONDS.show(
            {
                (each.provider, metrics.error_class(each.error_class)): each.seconds
                for each in measured.circuits
                if each.open
            }
        )

    def _show_queues(self, queues: list[Queue]) -> None:
        metrics.KAFKA_LAG.show({(each.type, each.topic, each.group): each.positions.lag for each in queues})
        metrics.PARTITIONS.show({(each.type,): len(each.positions.partitions) for each in queues})


def _zeros(measured: Measured, states: Sequence[str]) -> dict[tuple[str, str], int]:
    """Every registered type is shown, whether tasks of it wait or not."""
    return {(name, state): 0 for name in measured.types for state in states}


def _show_oldest(measured: Measured, ages: Mapping[str, float]) -> None:
    oldest = {**dict.fromkeys(measured.types, 0.0), **ages}
    for depth in measured.depths:
        if depth.state == "due" and depth.tasks and depth.oldest is not None:
            oldest[depth.type] = max(oldest.get(depth.type, 0.0), depth.oldest)
    metrics.OLDEST.show({(name,): age for name, age in oldest.items()})


def _clear(*snapshots: Snapshot) -> None:
    for each in snapshots:
        each.clear()
