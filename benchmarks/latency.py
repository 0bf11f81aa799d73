"""Latency at idle: from a request's first byte sent to its handler started, one task at a time."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

import asyncpg

from benchmarks.client import Connection, post
from benchmarks.handlers import stamp
from benchmarks.lab import Lab, Scene, listening, until
from benchmarks.report import Column, Sample, Table, percentile
from benchmarks.rounds import Effort, take_turns
from taskflux.local.ports import free_port

TASKS: Final = 100
PAUSES: Final = (0.02, 0.06)
"""Seconds between two submits, drawn anew each time: nothing may fall into step with a poll."""

REQUEST: Final = post("/tasks", json.dumps({"taskType": "stamp", "payload": {"number": 12345}}).encode())


@dataclass(frozen=True, slots=True)
class Way:
    """One way from submit to handler: where it takes tasks, and the query that says when each was started."""

    port: int
    started: str
    database: Any


async def latency(lab: Lab, effort: Effort) -> Table:
    """TaskFlux with ingest, relay and worker next to a bare service and consumer."""
    async with _ways(lab) as ways:
        samples = await take_turns(
            {name: partial(_round, way, effort.some(TASKS)) for name, way in ways.items()}, effort.rounds
        )
    columns = [
        Column("p50 ms", 1),
        Column("p99 ms", 1),
        Column("answered, p50 ms", 1),
    ]
    return Table(
        "latency",
        "end-to-end latency at idle: submit → handler started",
        columns,
        "starlette → aiokafka",
        samples,
        [f"{effort.some(TASKS)} tasks a round; answered: submit → 202"],
    )


@asynccontextmanager
async def _ways(lab: Lab) -> AsyncIterator[dict[str, Way]]:
    async with AsyncExitStack() as stack:
        scenes = await lab.scenes([stamp], ["floor"])
        ways = {"starlette → aiokafka": await _bare(lab, next(iter(scenes.values())), stack)}
        ways |= {name: await _taskflux(lab, scene, stack) for name, scene in scenes.items()}
        for way in ways.values():
            await _round(way, 10)  # waits until the consumer has joined its group
        yield ways


async def _bare(lab: Lab, scene: Scene, stack: AsyncExitStack) -> Way:
    port, topic = free_port(), scene.topic("floor")
    await stack.enter_async_context(lab.floor("consumer", scene, "batched", topic))
    await stack.enter_async_context(lab.floor("web", scene, "publish", str(port), topic))
    return await _connect(scene, port, "SELECT result::bigint FROM floor_tasks WHERE id = $1", stack)


async def _taskflux(lab: Lab, scene: Scene, stack: AsyncExitStack) -> Way:
    port = free_port()
    for handler in ("relay", "benchmarks.handlers:stamp"):
        await stack.enter_async_context(lab.taskflux(handler, scene))
    await stack.enter_async_context(lab.taskflux("ingest", scene, port))
    started = "SELECT (result::json->>'startedAt')::bigint FROM tasks WHERE id = $1"
    return await _connect(scene, port, started, stack)


async def _connect(scene: Scene, port: int, started: str, stack: AsyncExitStack) -> Way:
    await listening(port)
    database = await asyncpg.connect(scene.postgres.dsn.get_secret_value())
    stack.push_async_callback(database.close)
    return Way(port, started, database)


async def _round(way: Way, tasks: int) -> Sample:
    sent: dict[UUID, int] = {}
    answered: list[float] = []
    connection = await Connection.open(way.port)
    for _ in range(tasks):
        await asyncio.sleep(random.uniform(*PAUSES))
        now = time.time_ns()
        status = await connection.ask(REQUEST)
        answered.append((time.time_ns() - now) / 1e6)
        if status != 202:
            raise RuntimeError(f"answered {status}: {connection.body[:500]!r}")
        sent[UUID(json.loads(connection.body)["taskId"])] = now
    connection.close()
    waits = []
    for task, now in sent.items():
        at = await _once(partial(way.database.fetchval, way.started, task))
        waits.append((at - now) / 1e6)
    return {
        "p50 ms": percentile(waits, 0.5),
        "p99 ms": percentile(waits, 0.99),
        "answered, p50 ms": percentile(answered, 0.5),
    }


async def _once(ask: Callable[[], Awaitable[int | None]]) -> int:
    """The first answer that is not None."""
    found: list[int] = []

    async def there() -> bool:
        answer = await ask()
        if answer is not None:
            found.append(answer)
        return bool(found)

    await until(there, "the task is handled")
    return found[0]
