"""A backlog that waits in Kafka: how fast one worker process turns it into durable outcomes, and at what CPU cost.

The consumers have joined before. Each is stopped (SIGSTOP) while its backlog is published, and let go at once.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from signal import SIGCONT, SIGSTOP
from types import MappingProxyType
from typing import Any, Final

from benchmarks import cpu
from benchmarks.backlogs import Backlogs, Lane, open_backlogs
from benchmarks.cpu import Meter
from benchmarks.handlers import NAP, nap, noop
from benchmarks.lab import Lab, until
from benchmarks.peers.contest import backlog_turns, peers_of
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Contestant, Effort, take_turns
from taskflux.local.processes import Process
from taskflux.worker.handler import Handler

WARM_UP: Final = 500
COLUMNS: Final = (Column("tasks/s", spread=True), *cpu.COLUMNS)
BATCHED, SINGLE = "aiokafka, UPDATEs batched", "aiokafka, an UPDATE each"


@dataclass(frozen=True, slots=True)
class Plan:
    """A handler that awaits `nap` seconds, and the backlogs: for those that write outcomes in batches, and for the one
    that does not.
    """

    key: str
    title: str
    handler: Handler[Any]
    nap: float
    tasks: int
    tasks_single: int


@dataclass(frozen=True, slots=True)
class Consumer:
    """One of those that work a backlog of `tasks` off."""

    lab: Lab
    backlogs: Backlogs
    process: Process
    lane: Lane
    tasks: int


NOOP: Final = Plan(
    "backlog", "process a backlog of no-op tasks: outcomes durable, one process", noop, 0.0, 20_000, 4_000
)
NAPPING: Final = Plan(
    "nap",
    f"process a backlog whose handler awaits {NAP * 1000:.0f} ms: outcomes durable, one process",
    nap,
    NAP,
    12_000,
    4_000,
)


async def noop_backlog(lab: Lab, effort: Effort) -> Table:
    """Tasks whose handler does nothing."""
    return await _backlog(lab, effort, NOOP)


async def nap_backlog(lab: Lab, effort: Effort) -> Table:
    """Tasks whose handler awaits 20 ms."""
    return await _backlog(lab, effort, NAPPING)


async def _backlog(lab: Lab, effort: Effort, plan: Plan) -> Table:
    async with open_consumers(lab, effort, plan) as consumers:
        turns: dict[str, Contestant] = {name: partial(worked_off, consumer) for name, consumer in consumers.items()}
        turns |= backlog_turns(lab.contest, plan.handler.type, effort)
        samples = await take_turns(turns, effort.rounds)
    return Table(plan.key, plan.title, COLUMNS, BATCHED, samples, [cpu.NOTE], peers_of(lab))


@asynccontextmanager
async def open_consumers(
    lab: Lab, effort: Effort, plan: Plan, settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[dict[str, Consumer]]:
    """Bare consumers, and a worker of each build with further `settings`; each has joined its group, and is warm."""
    handler = plan.handler
    async with AsyncExitStack() as stack:
        scenes = await lab.scenes([handler], ["batched", "single"])
        scene = next(iter(scenes.values()))
        backlogs = await stack.enter_async_context(open_backlogs(scene))
        consumers: dict[str, Consumer] = {}
        for name, mode, tasks in ((BATCHED, "batched", plan.tasks), (SINGLE, "single", plan.tasks_single)):
            floor = lab.floor("consumer", scene, mode, scene.topic(mode), str(plan.nap))
            process = await stack.enter_async_context(floor)
            consumers[name] = Consumer(lab, backlogs, process, Lane.of_floor(mode), effort.some(tasks))
        for name, scene in scenes.items():
            backlogs = await stack.enter_async_context(open_backlogs(scene))
            worker = lab.taskflux(f"benchmarks.handlers:{handler.name}", scene, further=settings)
            process = await stack.enter_async_context(worker)
            lane = Lane.of_type(handler.type)
            consumers[f"{name} worker"] = Consumer(lab, backlogs, process, lane, effort.some(plan.tasks))
        for consumer in consumers.values():
            await consumer.backlogs.publish(consumer.lane, WARM_UP)
        for consumer in consumers.values():
            await until(
                partial(consumer.backlogs.done, consumer.lane), f"{consumer.process.name} works its first tasks off"
            )
        yield consumers


async def worked_off(consumer: Consumer) -> Sample:
    """One backlog, from empty tables."""
    process, backlogs = consumer.process, consumer.backlogs
    process.send(SIGSTOP)
    try:
        await backlogs.clear()
        await backlogs.publish(consumer.lane, consumer.tasks)
        meter, began = await Meter.begin(consumer.lab, process), time.time()
    finally:
        process.send(SIGCONT)
    await until(partial(backlogs.done, consumer.lane), f"{process.name} works its backlog off", pause=0.2)
    return {
        "tasks/s": consumer.tasks / (await backlogs.last_outcome(consumer.lane) - began),
        **meter.per_task(consumer.tasks),
    }
