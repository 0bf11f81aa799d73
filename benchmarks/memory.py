"""Memory of processes that have joined, done a little, and wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from benchmarks.backlogs import Backlogs, Lane, open_backlogs
from benchmarks.client import Connection, post
from benchmarks.lab import Lab, listening, until
from benchmarks.peers.contest import PEERS, peers_of
from benchmarks.proc import memory_mib
from benchmarks.report import Column, Table
from benchmarks.rounds import Effort
from taskflux.handlers.process_simulated import process_simulated
from taskflux.local.ports import free_port
from taskflux.local.processes import Process

FLOOR: Final = "aiokafka + asyncpg"
TASKS: Final = 50
SETTLED: Final = 2.0
"""Seconds of nothing before a process counts as idle."""

TASK: Final = post("/tasks", json.dumps({"taskType": "simulated", "payload": {"delayMs": 0}}).encode())


async def memory(lab: Lab, effort: Effort) -> Table:
    """One of each, side by side: what they share is divided between them, as on a node."""
    async with AsyncExitStack() as stack:
        scenes = await lab.scenes([process_simulated], ["idle"])
        processes: dict[str, Process] = {}
        for build, scene in scenes.items():
            backlogs = await stack.enter_async_context(open_backlogs(scene))
            lanes, port = [Lane.of_type("simulated")], free_port()
            if not processes:
                floor = lab.floor("consumer", scene, "batched", scene.topic("idle"))
                processes[FLOOR] = await stack.enter_async_context(floor)
                lanes.append(Lane.of_floor("idle"))
            for name in ("process-simulated", "relay", "ingest"):
                started = lab.taskflux(name, scene, port if name == "ingest" else None)
                processes[f"{build} {name}"] = await stack.enter_async_context(started)
            await _use(port, backlogs, lanes)
        if lab.contest is not None:
            for name, peer in PEERS.items():
                await lab.contest.clear(peer)
                work = await stack.enter_async_context(lab.contest.worker(peer, "noop"))
                await work.publish(100)
                await until(work.done, f"the first tasks of {name} are done")
                processes[name] = work.process
        await asyncio.sleep(SETTLED)
        samples = {name: [memory_mib(process.pid)] for name, process in processes.items()}
    columns = [Column("PSS MiB", 1), Column("private MiB", 1)]
    return Table("memory", "memory at idle, after a few tasks", columns, FLOOR, samples, peers=peers_of(lab))


async def _use(port: int, backlogs: Backlogs, lanes: Sequence[Lane]) -> None:
    """Let tasks pass through all of them."""
    await listening(port)
    connection = await Connection.open(port)
    for _ in range(TASKS):
        await connection.ask(TASK)
    connection.close()
    for lane in lanes:
        if lane.table == "floor_tasks":
            await backlogs.publish(lane, TASKS)
        await until(partial(backlogs.done, lane), "the first tasks are done")
