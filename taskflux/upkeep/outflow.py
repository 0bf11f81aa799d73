"""How many tasks of a type may be published now: its circuit, the ramp after an outage, and its lag in Kafka."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from taskflux.store.publishing import Circuit, Circuits
from taskflux.store.tasks import TaskTypes
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.positions import Positions
from taskflux.stream.topics import task_group, task_topic
from taskflux.tasks.model import TaskType
from taskflux.tasks.policy import release_rate
from taskflux.worker.settings import Settings

log = logging.getLogger(__name__)

LAG_HOLDS: Final = 0.5
"""Seconds for which a lag that was read is used; publishes since then are added."""
TYPES_HOLD: Final = 10.0
"""Seconds for which the task types that were read are used."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Tasks that may be published now; `probe`: they are the probe of an open circuit."""

    tasks: int
    probe: bool = False


NOTHING: Final = Allowance(0)


@dataclass(slots=True)
class _Flow:
    """The state of a type between rounds."""

    lag: int | None = None
    lag_read_at: float = float("-inf")
    released: int = 0
    stuck: bool = False
    ramped_at: float | None = None


class Outflow:
    """Limits what is published. `clock` returns monotonic seconds."""

    def __init__(
        self,
        settings: Settings,
        positions: Positions,
        circuits: Circuits,
        task_types: TaskTypes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings.relay
        self._prefix = settings.kafka.topic_prefix
        self._positions = positions
        self._circuits = circuits
        self._task_types = task_types
        self._clock = clock
        self._known_circuits: Mapping[str, Circuit] = {}
        self._types: Mapping[str, TaskType] = {}
        self._types_read_at = float("-inf")
        self._flows: dict[str, _Flow] = {}

    async def refresh(self) -> None:
        """Read the circuits again, and the types every `TYPES_HOLD` seconds.

        Raises:
            StoreError: they could not be read.
        """
        now = self._clock()
        if now - self._types_read_at >= TYPES_HOLD:
            self._types = await self._task_types.all()
            self._types_read_at = now
        self._known_circuits = await self._circuits.all()

    async def allowance(self, task_type: str) -> Allowance:
        """How many tasks of `task_type` may be published now.

        Raises:
            StoreError: PostgreSQL was asked for the right to a probe, and failed.
        """
        known = self._types.get(task_type)
        circuit = self._known_circuits.get(known.provider) if known and known.provider else None
        if circuit is not None and circuit.open:
            tasks = await self._circuits.take_probe(circuit.provider)
            return Allowance(tasks, probe=True) if tasks else NOTHING
        flow = self._flows.setdefault(task_type, _Flow())
        room = await self._room(task_type, flow)
        ramp = self._ramp(flow, circuit)
        return Allowance(max(0, room if ramp is None else min(room, ramp)))

    def released(self, task_type: str, tasks: int) -> None:
        """`tasks` of the type were published."""
        self._flows.setdefault(task_type, _Flow()).released += tasks

    async def _room(self, task_type: str, flow: _Flow) -> int:
        """How many more unclaimed records of the type Kafka may hold."""
        now = self._clock()
        if now - flow.lag_read_at >= LAG_HOLDS:
            lag = await self._lag(task_type)
            if lag is None and not flow.stuck:
                log.warning(
                    "nothing is published: the topic is missing or Kafka is unreachable", extra={"type": task_type}
                )
            flow.lag, flow.lag_read_at, flow.released, flow.stuck = lag, now, 0, lag is None
        return 0 if flow.lag is None else self._settings.max_unclaimed - flow.lag - flow.released

    async def _lag(self, task_type: str) -> int | None:
        try:
            return await self._positions.lag(task_group(self._prefix, task_type), task_topic(self._prefix, task_type))
        except KafkaUnavailable:
            return None

    def _ramp(self, flow: _Flow, circuit: Circuit | None) -> int | None:
        """Tasks that the rising rate after an outage allows since it was last asked; None: no limit."""
        rate = release_rate(circuit.closed_for) if circuit is not None else None
        if rate is None:
            flow.ramped_at = None
            return None
        now = self._clock()
        since = now - flow.ramped_at if flow.ramped_at is not None else self._settings.max_wait
        if rate * since < 1:
            return 0
        flow.ramped_at = now
        return int(rate * min(since, 1.0))
