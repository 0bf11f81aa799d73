"""Latency at idle: from the answer to a submit until its handler is started, one task at a time."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

import asyncpg

from benchmarks.client import Connection, post
from benchmarks.handlers import stamp
from benchmarks.lab import Lab, Scene, listening, until
from benchmarks.payload import PAYLOAD
from benchmarks.peers.contest import PEERS, Contest, Peer, peers_of
from benchmarks.report import Column, Sample, Table, percentile
from benchmarks.rounds import Contestant, Effort, take_turns
from taskflux.local.ports import free_port

TASKS: Final = 100
PAUSES: Final = (0.02, 0.06)
"""Seconds between two submits, drawn anew each time: nothing may fall into step with a poll."""

FLOOR: Final = "starlette → aiokafka"
COLUMNS: Final = (
    Column("p50 ms", 1, spread=True),
    Column("p99 ms", 1, spread=True),
    Column("submit → started, p50 ms", 1),
    Column("submit → 202, p50 ms", 1),
)


@dataclass(frozen=True, slots=True)
class Way:
    """One way from submit to handler: where it takes tasks, and the query that says when each was started."""

    port: int
    started: str
    database: Any


@dataclass(frozen=True, slots=True)
class Noted:
    """One task: when it was sent and answered, in nanoseconds since 1970, and what tells when it was started."""

    sent: int
    answered: int
    started: Callable[[], Awaitable[int | None]]


async def latency(lab: Lab, effort: Effort) -> Table:
    """TaskFlux with ingest, relay and worker next to a bare service and consumer."""
    tasks = effort.some(TASKS)
    async with _ways(lab) as ways:
        turns: dict[str, Contestant] = {name: partial(_round, way, tasks) for name, way in ways.items()}
        if lab.contest is not None:
            turns |= {name: partial(_by_peer, lab.contest, peer, tasks) for name, peer in PEERS.items()}
        samples = await take_turns(turns, effort.rounds)
    notes = [f"{tasks} tasks a round, one at a time; submit: a request's first byte sent; 202: its answer is here"]
    return Table("latency", "latency at idle: 202 → handler started", COLUMNS, FLOOR, samples, notes, peers_of(lab))


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
    noted: list[Noted] = []

    async def note(number: int, sent: int, answered: int, body: bytes) -> None:
        task = UUID(json.loads(body)["taskId"])
        noted.append(Noted(sent, answered, partial(way.database.fetchval, way.started, task)))

    await _submits(way.port, tasks, note)
    return await _sample(noted)


async def _by_peer(contest: Contest, peer: Peer, tasks: int) -> Sample:
    noted: list[Noted] = []

    async def note(number: int, sent: int, answered: int, body: bytes) -> None:
        async def started() -> int | None:
            return contest.stamps.started.get(number)

        noted.append(Noted(sent, answered, started))

    await contest.clear(peer)
    async with contest.worker(peer, "stamp") as work, contest.service(peer) as (_, port):
        await work.publish(10)
        await until(partial(_reported, contest, 10), f"{work.process.name} works its first tasks off")
        contest.stamps.started.clear()
        await _submits(port, tasks, note)
        return await _sample(noted)


async def _reported(contest: Contest, tasks: int) -> bool:
    return len(contest.stamps.started) >= tasks


async def _submits(port: int, tasks: int, note: Callable[[int, int, int, bytes], Awaitable[None]]) -> None:
    """One after the other, at random times; `note` gets the number, the times of request and answer, and the answer.

    Raises:
        RuntimeError: a task was not accepted.
    """
    connection = await Connection.open(port)
    for number in range(tasks):
        body = json.dumps({"taskType": "stamp", "payload": PAYLOAD | {"number": number}}).encode()
        await asyncio.sleep(random.uniform(*PAUSES))
        sent = time.time_ns()
        status = await connection.ask(post("/tasks", body))
        answered = time.time_ns()
        if status != 202:
            raise RuntimeError(f"answered {status}: {connection.body[:500]!r}")
        await note(number, sent, answered, connection.body)
    connection.close()


async def _sample(noted: Sequence[Noted]) -> Sample:
    """The figures, once all are started."""
    starts = [await _once(each.started) for each in noted]
    waits = [(start - each.answered) / 1e6 for start, each in zip(starts, noted, strict=True)]
    whole = [(start - each.sent) / 1e6 for start, each in zip(starts, noted, strict=True)]
    return {
        "p50 ms": percentile(waits, 0.5),
        "p99 ms": percentile(waits, 0.99),
        "submit → started, p50 ms": percentile(whole, 0.5),
        "submit → 202, p50 ms": percentile([(each.answered - each.sent) / 1e6 for each in noted], 0.5),
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
