"""Submits over HTTP, one by one and in batches: what one process makes durable in a second."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import asyncpg

from benchmarks.handlers import noop
from benchmarks.lab import ROOT, Lab, Scene, listening, until
from benchmarks.proc import cpu_seconds
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Contestant, Effort, take_turns
from taskflux.local.ports import free_port
from taskflux.local.processes import Process

CONNECTIONS: Final = 32
SECONDS: Final = 2.0
BATCH: Final = 5000
BATCH_CONNECTIONS: Final = 2
TASK: Final = {"taskType": "noop", "payload": {"to": "someone@example.org", "subject": "Hello", "number": 12345}}

FLOORS: Final = {
    "starlette, an INSERT each": "insert",
    "… + produce, an UPDATE each": "publish",
    "… with grouped INSERTs, no Kafka": "grouped",
}
BATCH_FLOORS: Final = {"starlette, an INSERT a batch": "insert", "… + produce, an UPDATE a batch": "publish"}


@dataclass(frozen=True, slots=True)
class Service:
    """One of those that take submits."""

    scene: Scene
    process: Process
    port: int


async def submit(lab: Lab, effort: Effort) -> Table:
    """Single submits over 32 connections."""
    async with _services(lab, FLOORS) as services:
        body = json.dumps(TASK).encode()
        seconds = max(1.0, SECONDS * effort.scale)
        contestants: Mapping[str, Contestant] = {
            name: partial(_round, service, "/tasks", CONNECTIONS, seconds, body, 1)
            for name, service in services.items()
        }
        samples = await take_turns(contestants, effort.rounds)
    columns = [
        Column("submits/s"),
        Column("p50 ms", 1),
        Column("p99 ms", 1),
        Column("CPU µs/submit"),
        Column("published/s"),
    ]
    return Table(
        "submit",
        f"submit over HTTP: durable submits, {CONNECTIONS} connections, one process",
        columns,
        "starlette, an INSERT each",
        samples,
        ["published/s: until the last of them is also in Kafka and PostgreSQL knows it; CPU covers that too"],
    )


async def submit_batch(lab: Lab, effort: Effort) -> Table:
    """Batches as a JSON array."""
    async with _services(lab, BATCH_FLOORS) as services:
        body = json.dumps([TASK] * BATCH).encode()
        seconds = max(1.0, SECONDS * effort.scale)
        contestants: Mapping[str, Contestant] = {
            name: partial(_round, service, "/tasks/batch", BATCH_CONNECTIONS, seconds, body, BATCH)
            for name, service in services.items()
        }
        samples = await take_turns(contestants, effort.rounds)
    columns = [Column("submits/s"), Column("CPU µs/submit"), Column("published/s")]
    return Table(
        "batch",
        f"submit over HTTP in batches of {BATCH:,}: durable submits, {BATCH_CONNECTIONS} connections, one process",
        columns,
        "starlette, an INSERT a batch",
        samples,
    )


@asynccontextmanager
async def _services(lab: Lab, floors: Mapping[str, str]) -> AsyncIterator[dict[str, Service]]:
    """TaskFlux's ingest and these floors, listening."""
    async with AsyncExitStack() as stack:
        scenes = await lab.scenes([noop], ["floor"])
        scene = next(iter(scenes.values()))
        services: dict[str, Service] = {}
        for name, mode in floors.items():
            port = free_port()
            floor = lab.floor("web", scene, mode, str(port), scene.topic("floor"))
            services[name] = Service(scene, await stack.enter_async_context(floor), port)
        for name, scene in scenes.items():
            port = free_port()
            ingest = lab.taskflux("ingest", scene, port)
            services[f"{name} ingest"] = Service(scene, await stack.enter_async_context(ingest), port)
        for service in services.values():
            await listening(service.port)
        for service in services.values():  # connections are opened and code is warmed before anything counts
            await _load(service.port, "/tasks", CONNECTIONS, 0.5, json.dumps(TASK).encode())
        yield services


async def _round(service: Service, path: str, connections: int, seconds: float, body: bytes, tasks: int) -> Sample:
    """One round from empty tables; `tasks` is how many one request carries."""
    connection = await asyncpg.connect(service.scene.postgres.dsn.get_secret_value())
    try:
        await connection.execute("TRUNCATE tasks, due, floor_tasks")
        cpu, began = cpu_seconds(service.process.pid), asyncio.get_running_loop().time()
        found = await _load(service.port, path, connections, seconds, body)
        submitted = found["answered"] * tasks
        started = began + (asyncio.get_running_loop().time() - began - found["seconds"])
        await until(lambda: _all_published(connection), "what was submitted is published", pause=0.02)
        took = asyncio.get_running_loop().time() - started
        return {
            "submits/s": submitted / found["seconds"],
            "p50 ms": found["p50"],
            "p99 ms": found["p99"],
            "CPU µs/submit": (cpu_seconds(service.process.pid) - cpu) / submitted * 1e6,
            "published/s": submitted / took,
        }
    finally:
        await connection.close()


async def _all_published(connection: Any) -> bool:
    """Whether nothing waits to be published (by whom nothing is published, it is at once)."""
    waits = "SELECT EXISTS (SELECT FROM due) OR EXISTS (SELECT FROM floor_tasks WHERE state = 'accepted' AND $1)"
    publishes = await connection.fetchval("SELECT EXISTS (SELECT FROM floor_tasks WHERE state = 'queued')")
    return not await connection.fetchval(waits, publishes)


async def _load(port: int, path: str, connections: int, seconds: float, body: bytes) -> dict[str, float]:
    """Run the load generator in a process of its own."""
    arguments = ("-m", "benchmarks.load", str(port), path, str(connections), str(seconds))
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, stdin=pipe, stdout=pipe)
    output, _ = await child.communicate(body)
    if child.returncode:
        raise RuntimeError(f"the load generator ended with {child.returncode}")
    found: dict[str, float] = json.loads(output)
    return found
