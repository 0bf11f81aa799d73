"""How throughput and latency move: with connections, with concurrency, with the size of batches and payloads, and with
the rate of submits. Each point is a contestant, `<system> · <x>`; `benchmarks.peers.plots` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Final

import asyncpg

from benchmarks.backlog import BATCHED, NAPPING, open_consumers, worked_off
from benchmarks.handlers import stamp
from benchmarks.lab import Lab, Scene, listening, until
from benchmarks.report import Column, Sample, Table, percentile
from benchmarks.rounds import Contestant, Effort, take_turns
from benchmarks.submit import FLOOR, Load, open_services, submitted
from taskflux.local.ports import free_port

CONNECTIONS: Final = (1, 4, 16, 64, 256)
BATCHES: Final = (1, 10, 100, 1000, 4000)
PAYLOADS: Final = (100, 1_000, 10_000, 100_000)
"""Bytes of text."""
SLOTS: Final = (1, 8, 64, 512)
RATES: Final = (100, 400, 800, 1200, 1600)
"""Submits a second; ingest, relay, worker and clients share two cores."""
SIDES: Final = {"floor": FLOOR, "TaskFlux": "TaskFlux ingest"}


def point(side: str, x: int) -> str:
    """The contestant of one point."""
    return f"{side} · {x:,}"


async def _submits(lab: Lab, effort: Effort, key: str, title: str, loads: Mapping[int, Load]) -> Table:
    async with open_services(lab, {FLOOR: "durable"}) as services:
        turns: dict[str, Contestant] = {
            point(side, x): partial(submitted, services[name], load)
            for x, load in loads.items()
            for side, name in SIDES.items()
        }
        samples = await take_turns(turns, effort.few)
    columns = [Column("submits/s", spread=True), Column("p50 ms", 1), Column("p99 ms", 1), Column("CPU µs/task", 1)]
    return Table(key, title, columns, None, samples)


async def connections(lab: Lab, effort: Effort) -> Table:
    """Single submits over more and more connections."""
    loads = {x: Load.single(effort.seconds(1.0), x) for x in CONNECTIONS}
    return await _submits(lab, effort, "connections", "submits over so many connections", loads)


async def batch_sizes(lab: Lab, effort: Effort) -> Table:
    """NDJSON of more and more lines over four connections."""
    loads = {x: Load.lines(effort.seconds(1.0), x) for x in BATCHES}
    return await _submits(lab, effort, "batch-sizes", "NDJSON batches of so many lines, four connections", loads)


async def payload_sizes(lab: Lab, effort: Effort) -> Table:
    """Single submits of longer and longer texts."""
    loads = {x: Load.single(effort.seconds(1.0), payload={"text": "x" * x}) for x in PAYLOADS}
    return await _submits(lab, effort, "payload-sizes", "submits with payloads of so many bytes, 32 connections", loads)


async def slots(lab: Lab, effort: Effort) -> Table:
    """A backlog whose handler awaits 20 ms, by workers that run more and more attempts at once."""
    samples: dict[str, list[Sample]] = {}
    for number in SLOTS:
        plan = replace(NAPPING, tasks=min(NAPPING.tasks, 60 * number))
        settings = {"TASKFLUX_WORKER__CONCURRENCY": str(number)}
        async with open_consumers(lab, effort, plan, settings) as consumers:
            turns: dict[str, Contestant] = {
                point("TaskFlux", number): partial(worked_off, consumers["TaskFlux worker"])
            }
            if number == SLOTS[-1]:
                turns[point("floor", number)] = partial(worked_off, consumers[BATCHED])
            samples |= await take_turns(turns, effort.few)
    columns = [Column("tasks/s", spread=True), Column("CPU µs/task", 1)]
    notes = ["the floor runs a whole fetch of 500 at once"]
    return Table("slots", "a backlog whose handler awaits 20 ms, so many at once", columns, None, samples, notes)


async def under_load(lab: Lab, effort: Effort) -> Table:
    """Submits at a fixed rate: how long the answer takes, and how long until the handler is started."""
    async with AsyncExitStack() as stack:
        scenes = await lab.scenes([stamp], ["floor"])
        scene = next(iter(scenes.values()))
        ports = {"floor": free_port(), "TaskFlux": free_port()}
        topic = scene.topic("floor")
        await stack.enter_async_context(lab.floor("consumer", scene, "batched", topic))
        await stack.enter_async_context(lab.floor("web", scene, "durable", str(ports["floor"]), topic))
        for handler in ("relay", "benchmarks.handlers:stamp"):
            await stack.enter_async_context(lab.taskflux(handler, scene))
        await stack.enter_async_context(lab.taskflux("ingest", scene, ports["TaskFlux"]))
        for port in ports.values():
            await listening(port)
        turns: dict[str, Contestant] = {}
        for rate in RATES:
            body = Load.single(effort.seconds(2.0), 64).body.replace(b'"noop"', b'"stamp"')
            load = replace(Load.single(effort.seconds(2.0), 64), body=body, rate=float(rate))
            turns |= {point(side, rate): partial(_loaded, scene, side, port, load) for side, port in ports.items()}
        for side, port in ports.items():
            await _loaded(scene, side, port, replace(load, rate=100.0))
        samples = await take_turns(turns, effort.few)
    columns = [
        Column("answered/s"),
        Column("answer p50 ms", 1),
        Column("answer p99 ms", 1),
        Column("row → started p50 ms", 1),
        Column("row → started p99 ms", 1),
    ]
    notes = ["row → started: from the row's insert, by PostgreSQL's clock, until the handler is started"]
    return Table("under-load", "latency at so many submits a second, 64 connections", columns, None, samples, notes)


STARTED: Final = {
    "floor": "SELECT result::bigint / 1e6 - extract(epoch FROM created_at) * 1e3 FROM floor_tasks",
    "TaskFlux": "SELECT (result::json->>'startedAt')::bigint / 1e6 - extract(epoch FROM created_at) * 1e3 FROM tasks",
}
LEFT: Final = {
    "floor": "SELECT EXISTS (SELECT FROM floor_tasks WHERE result IS NULL)",
    "TaskFlux": "SELECT EXISTS (SELECT FROM tasks WHERE state <> 'succeeded')",
}


async def _loaded(scene: Scene, side: str, port: int, load: Load) -> Sample:
    connection = await asyncpg.connect(scene.postgres.dsn.get_secret_value())

    async def done() -> bool:
        return not await connection.fetchval(LEFT[side])

    try:
        await connection.execute("TRUNCATE tasks, due, claims, floor_tasks")
        found = await load.sent(port)
        await until(done, "what was submitted has ended", pause=0.2)
        waits = [float(row[0]) for row in await connection.fetch(STARTED[side])]
    finally:
        await connection.close()
    return {
        "answered/s": found["answered"] / found["seconds"],
        "answer p50 ms": found["p50"],
        "answer p99 ms": found["p99"],
        "row → started p50 ms": percentile(waits, 0.5),
        "row → started p99 ms": percentile(waits, 0.99),
    }


CURVES: Final = {
    "connections": connections,
    "batch-sizes": batch_sizes,
    "payload-sizes": payload_sizes,
    "slots": slots,
    "under-load": under_load,
}
