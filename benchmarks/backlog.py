"""A backlog that waits in Kafka: how fast one worker process turns it into durable outcomes, and at what CPU cost.

The consumers have joined before. Each is stopped (SIGSTOP) while its backlog is published, and let go at once.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from signal import SIGCONT, SIGSTOP
from typing import Any, Final

from benchmarks.backlogs import Backlogs, Lane, open_backlogs
from benchmarks.handlers import NAP, nap, noop
from benchmarks.lab import Lab, until
from benchmarks.proc import cpu_seconds
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Effort, take_turns
from taskflux.local.processes import Process
from taskflux.worker.handler import Handler

WARM_UP: Final = 500
COLUMNS: Final = (Column("tasks/s"), Column("CPU µs/task"))
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

    backlogs: Backlogs
    process: Process
    lane: Lane
    tasks: int


async def noop_backlog(lab: Lab, effort: Effort) -> Table:
    """Tasks whose handler does nothing."""
    title = "process a backlog of no-op tasks: outcomes durable, one process"
    return await _backlog(lab, effort, Plan("backlog", title, noop, 0.0, 20_000, 4_000))


async def nap_backlog(lab: Lab, effort: Effort) -> Table:
    """Tasks whose handler awaits 20 ms."""
    title = f"process a backlog whose handler awaits {NAP * 1000:.0f} ms: outcomes durable, one process"
    return await _backlog(lab, effort, Plan("nap", title, nap, NAP, 12_000, 4_000))


async def _backlog(lab: Lab, effort: Effort, plan: Plan) -> Table:
    handler = plan.handler
    async with AsyncExitStack() as stack:
        scenes = await lab.scenes([handler], ["batched", "single"])
        scene = next(iter(scenes.values()))
        backlogs = await stack.enter_async_context(open_backlogs(scene))
        consumers: dict[str, Consumer] = {}
        for name, mode, tasks in ((BATCHED, "batched", plan.tasks), (SINGLE, "single", plan.tasks_single)):
            floor = lab.floor("consumer", scene, mode, scene.topic(mode), str(plan.nap))
            process = await stack.enter_async_context(floor)
            consumers[name] = Consumer(backlogs, process, Lane.of_floor(mode), effort.some(tasks))
        for name, scene in scenes.items():
            backlogs = await stack.enter_async_context(open_backlogs(scene))
            process = await stack.enter_async_context(lab.taskflux(f"benchmarks.handlers:{handler.name}", scene))
            lane = Lane.of_type(handler.type)
            consumers[f"{name} worker"] = Consumer(backlogs, process, lane, effort.some(plan.tasks))
        for consumer in consumers.values():
            await consumer.backlogs.publish(consumer.lane, WARM_UP)
        for consumer in consumers.values():  # it has joined its group then
            await until(
                partial(consumer.backlogs.done, consumer.lane), f"{consumer.process.name} works its first tasks off"
            )
        turns = {name: partial(worked_off, consumer) for name, consumer in consumers.items()}
        samples = await take_turns(turns, effort.rounds)
    return Table(plan.key, plan.title, COLUMNS, BATCHED, samples)


async def worked_off(consumer: Consumer) -> Sample:
    """One backlog, from empty tables."""
    process, backlogs = consumer.process, consumer.backlogs
    process.send(SIGSTOP)
    try:
        await backlogs.clear()
        await backlogs.publish(consumer.lane, consumer.tasks)
        cpu, began = cpu_seconds(process.pid), time.time()
    finally:
        process.send(SIGCONT)
    await until(partial(backlogs.done, consumer.lane), f"{process.name} works its backlog off", pause=0.2)
    return {
        "tasks/s": consumer.tasks / (await backlogs.last_outcome(consumer.lane) - began),
        "CPU µs/task": (cpu_seconds(process.pid) - cpu) / consumer.tasks * 1e6,
    }
