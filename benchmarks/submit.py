"""Submits over HTTP, one by one and in batches: what one process makes durable in a second."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import asyncpg

from benchmarks import cpu
from benchmarks.cpu import Meter
from benchmarks.handlers import noop
from benchmarks.lab import ROOT, Lab, Scene, listening, until
from benchmarks.payload import PAYLOAD
from benchmarks.peers.contest import PEERS, Contest, Peer, peers_of
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Contestant, Effort, take_turns
from taskflux.local.ports import free_port
from taskflux.local.processes import Process

FLOOR: Final = "starlette: INSERT, produce, answer"
FLOORS: Final = {
    FLOOR: "durable",
    "… INSERT, answer": "insert",
    "… INSERT, answer, produce, UPDATE": "publish",
    "… INSERTs in groups, answer": "grouped",
}
BATCH_FLOORS: Final = {FLOOR: "durable", "… INSERT, answer": "insert"}
COLUMNS: Final = (
    Column("submits/s", spread=True),
    Column("p50 ms", 1),
    Column("p99 ms", 1),
    *cpu.COLUMNS,
    Column("published/s"),
)
NOTES: Final = (
    cpu.NOTE,
    "published/s: until the last of them is also in Kafka and PostgreSQL knows it; CPU covers that too",
)
UNPUBLISHED: Final = "SELECT FROM due WHERE publish_at < now() + interval '1 year'"
"""A published task keeps its outbox row, with a time that never comes, until it is claimed."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients send, for so many seconds: `tasks` in each request."""

    path: str
    content_type: str
    body: bytes
    tasks: int
    connections: int
    seconds: float
    rate: float = 0.0

    @classmethod
    def single(cls, seconds: float, connections: int = 32, payload: Mapping[str, Any] = PAYLOAD) -> Load:
        """One task a request."""
        body = json.dumps({"taskType": noop.type, "payload": payload}).encode()
        return cls("/tasks", "application/json", body, 1, connections, seconds)

    @classmethod
    def lines(cls, seconds: float, tasks: int = 1000, connections: int = 4) -> Load:
        """NDJSON."""
        line = json.dumps({"taskType": noop.type, "payload": PAYLOAD}).encode()
        return cls("/tasks/batch", "application/x-ndjson", b"\n".join([line] * tasks), tasks, connections, seconds)

    async def sent(self, port: int) -> dict[str, float]:
        """What the load generator, a process of its own, says of it."""
        numbers = map(str, (self.connections, self.seconds, self.rate))
        arguments = ("-m", "benchmarks.load", str(port), self.path, self.content_type, *numbers)
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, stdin=pipe, stdout=pipe)
        output, _ = await child.communicate(self.body)
        if child.returncode:
            raise RuntimeError(f"the load generator ended with {child.returncode}")
        found: dict[str, float] = json.loads(output)
        return found


@dataclass(frozen=True, slots=True)
class Service:
    """One of those that take submits."""

    lab: Lab
    scene: Scene
    process: Process
    port: int


async def submit(lab: Lab, effort: Effort) -> Table:
    """Single submits over 32 connections."""
    load = Load.single(effort.seconds(2.0))
    async with open_services(lab, FLOORS) as services:
        turns: dict[str, Contestant] = {name: partial(submitted, service, load) for name, service in services.items()}
        if lab.contest is not None:
            turns |= {name: partial(_by_peer, lab.contest, peer, load) for name, peer in PEERS.items()}
        samples = await take_turns(turns, effort.rounds)
    title = f"submit over HTTP: durable submits, {load.connections} connections, one process"
    return Table("submit", title, COLUMNS, FLOOR, samples, NOTES, peers_of(lab))


async def submit_batch(lab: Lab, effort: Effort) -> Table:
    """Batches as NDJSON."""
    load = Load.lines(effort.seconds(2.0))
    async with open_services(lab, BATCH_FLOORS) as services:
        turns: dict[str, Contestant] = {name: partial(submitted, service, load) for name, service in services.items()}
        samples = await take_turns(turns, effort.rounds)
    title = f"submit over HTTP in batches of {load.tasks:,} lines: durable submits, {load.connections} connections"
    return Table("batch", title, COLUMNS, FLOOR, samples, NOTES)


@asynccontextmanager
async def open_services(lab: Lab, floors: Mapping[str, str]) -> AsyncIterator[dict[str, Service]]:
    """TaskFlux's ingest and these floors, listening and warm."""
    async with AsyncExitStack() as stack:
        scenes = await lab.scenes([noop], ["floor"])
        scene = next(iter(scenes.values()))
        services: dict[str, Service] = {}
        for name, mode in floors.items():
            port = free_port()
            floor = lab.floor("web", scene, mode, str(port), scene.topic("floor"))
            services[name] = Service(lab, scene, await stack.enter_async_context(floor), port)
        for name, scene in scenes.items():
            port = free_port()
            ingest = lab.taskflux("ingest", scene, port)
            services[f"{name} ingest"] = Service(lab, scene, await stack.enter_async_context(ingest), port)
        for service in services.values():
            await listening(service.port)
            await Load.single(0.5).sent(service.port)
        yield services


async def submitted(service: Service, load: Load) -> Sample:
    """One round, from empty tables."""
    connection = await asyncpg.connect(service.scene.postgres.dsn.get_secret_value())
    clock = asyncio.get_running_loop().time
    try:
        await connection.execute("TRUNCATE tasks, due, floor_tasks")
        meter = await Meter.begin(service.lab, service.process)
        found = await load.sent(service.port)
        answered = clock()
        await until(lambda: _all_published(connection), "what was submitted is published", pause=0.02)
        return _sample(found, load, meter, found["seconds"] + clock() - answered)
    finally:
        await connection.close()


async def _by_peer(contest: Contest, peer: Peer, load: Load) -> Sample:
    await contest.clear(peer)
    async with contest.service(peer) as (process, port):
        await replace(load, seconds=0.5).sent(port)
        meter = await Meter.begin(contest.lab, process)
        found = await load.sent(port)
        return _sample(found, load, meter, found["seconds"])


def _sample(found: Mapping[str, float], load: Load, meter: Meter, seconds: float) -> Sample:
    tasks = round(found["answered"] * load.tasks)
    return {
        "submits/s": tasks / found["seconds"],
        "p50 ms": found["p50"],
        "p99 ms": found["p99"],
        **meter.per_task(tasks),
        "published/s": tasks / seconds,
    }


async def _all_published(connection: Any) -> bool:
    """Whether nothing waits to be published (by whom nothing is published, it is at once)."""
    waits = f"SELECT EXISTS ({UNPUBLISHED}) OR EXISTS (SELECT FROM floor_tasks WHERE state = 'accepted' AND $1)"
    publishes = await connection.fetchval("SELECT EXISTS (SELECT FROM floor_tasks WHERE state = 'queued')")
    return not await connection.fetchval(waits, publishes)
