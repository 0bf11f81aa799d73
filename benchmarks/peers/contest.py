"""The peers from outside: what each promises, how its processes are started, and when its tasks have ended."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any, Final

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from benchmarks.cpu import Meter
from benchmarks.lab import ROOT, Lab, listening, until
from benchmarks.report import Sample
from benchmarks.rounds import Contestant, Effort
from taskflux.local.console import Trouble
from taskflux.local.ports import LOOPBACK, free_port
from taskflux.local.processes import Process
from taskflux.local.servers import ValkeyServer

PYTHON: Final = ROOT / ".venv" / "peers" / "bin" / "python"
QUEUE: Final = "bench"
WARM_UP: Final = 200
"""Tasks of a new worker before any that counts; FastStream reports one in a hundred."""
DATABASE: Final = "bench_procrastinate"
TOPICS: Final = ("bench-peers-noop", "bench-peers-nap", "bench-peers-stamp")


@dataclass(frozen=True, slots=True)
class Peer:
    """One of the systems. `tasks` and `naps` are how many a round has: some seconds of work each."""

    module: str
    worker: str
    napping: str
    """The command of a worker, and of one whose handlers wait; each one process with what suits it best."""
    promise: str
    tasks: int
    naps: int


PEERS: Final[Mapping[str, Peer]] = {
    "FastStream": Peer(
        "faststream",
        "faststream run benchmarks.peers.faststream:app --log-level warning",
        "faststream run benchmarks.peers.faststream:app --log-level warning",
        "submit: in Kafka, acks=all; no outcome is stored, offsets are committed by time, so that a crash loses tasks",
        10_000,
        6_000,
    ),
    "taskiq": Peer(
        "taskiq",
        "taskiq worker benchmarks.peers.taskiq:broker --workers 1 --max-async-tasks 512 --log-level WARNING",
        "taskiq worker benchmarks.peers.taskiq:broker --workers 1 --max-async-tasks 512 --log-level WARNING",
        "submit: in a Valkey stream; outcome: a result with a time to live, then XACK",
        2_000,
        2_000,
    ),
    "Dramatiq": Peer(
        "dramatiq",
        "dramatiq benchmarks.peers.dramatiq --processes 1 --threads 8",
        "dramatiq benchmarks.peers.dramatiq --processes 1 --threads 64",
        "submit: in a Valkey list; outcome: a result with a time to live, then the acknowledgement",
        3_000,
        1_500,
    ),
    "arq": Peer(
        "arq",
        "arq benchmarks.peers.arq.WorkerSettings",
        "arq benchmarks.peers.arq.WorkerSettings",
        "submit: in a Valkey sorted set; outcome: a result with a time to live; polls every 20 ms (its default: 500)",
        1_500,
        1_500,
    ),
    "procrastinate": Peer(
        "procrastinate",
        "procrastinate --app benchmarks.peers.procrastinate.app worker --concurrency 16",
        "procrastinate --app benchmarks.peers.procrastinate.app worker --concurrency 64",
        "submit and outcome: a row in PostgreSQL",
        400,
        400,
    ),
    "Celery": Peer(
        "celery",
        "celery -A benchmarks.peers.celery worker -P solo -l ERROR",
        "celery -A benchmarks.peers.celery worker -P threads -c 64 -l ERROR",
        "submit: in a Valkey list; outcome: a result with a time to live, then the acknowledgement (acks_late)",
        800,
        800,
    ),
}


PROMISES: Final = (
    "floor: submit: a row in PostgreSQL, and its record in Kafka, acks=all; outcome: in the row, before the offset",
    "TaskFlux: submit: a row in PostgreSQL, with an outbox row until Kafka has the record; outcome: as the floor's",
    *(f"{name}: {peer.promise}" for name, peer in PEERS.items()),
    "Valkey appends to a file with an fsync a second; PostgreSQL waits for its fsync",
)


class Stamps(asyncio.DatagramProtocol):
    """What tasks report of themselves: their number, and when they were started."""

    def __init__(self) -> None:
        self.started: dict[int, int] = {}

    def datagram_received(self, data: bytes, address: Any) -> None:
        number, now = map(int, data.split())
        self.started.setdefault(number, now)


@dataclass
class Contest:
    """The peers on the servers of a lab."""

    lab: Lab
    valkey: ValkeyServer
    stamps: Stamps
    environment: Mapping[str, str]

    async def program(self, peer: Peer, *arguments: str) -> None:
        """Run the program of `peer` to its end.

        Raises:
            Trouble: it failed.
        """
        argv: list[str | Path] = [PYTHON, "-m", "benchmarks.peers.program", peer.module, *arguments]
        async with self.lab.run(f"{peer.module}-{'-'.join(arguments)}", argv, self._environment(peer)) as process:
            if await process.wait():
                raise Trouble(f"{peer.module} {' '.join(arguments)} failed: {process.last_words()}")

    @asynccontextmanager
    async def service(self, peer: Peer) -> AsyncIterator[tuple[Process, int]]:
        """Its HTTP service, listening; its port."""
        port = free_port()
        argv: list[str | Path] = [PYTHON, "-m", "benchmarks.peers.program", peer.module, "serve", str(port)]
        async with self.lab.run(f"{peer.module}-serve", argv, self._environment(peer)) as process:
            await listening(port)
            yield process, port

    @asynccontextmanager
    async def worker(self, peer: Peer, kind: str) -> AsyncIterator[Work]:
        """A worker for tasks of this kind, which has just been started."""
        command = (peer.napping if kind == "nap" else peer.worker).split()
        self.stamps.started.clear()
        async with self.lab.run(f"{peer.module}-worker", [PYTHON, "-m", *command], self._environment(peer)) as process:
            yield Work(self, peer, process, kind)

    async def clear(self, peer: Peer) -> None:
        """Forget its tasks; no worker may run."""
        if peer.module == "procrastinate":
            async with self.database() as connection:
                await connection.execute("TRUNCATE procrastinate_jobs CASCADE")
        async with self.redis(peer) as redis:
            await redis.flushdb()

    async def waiting(self, peer: Peer) -> int:
        """How many of its tasks have not ended, of a system that keeps them."""
        if peer.module == "procrastinate":
            async with self.database() as connection:
                left = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
                return int(await connection.fetchval(left))
        async with self.redis(peer) as redis:
            return await _WAITING[peer.module](redis)

    @asynccontextmanager
    async def redis(self, peer: Peer) -> AsyncIterator[Redis]:
        """Its database in Valkey."""
        async with Redis.from_url(self._redis_url(peer)) as redis:
            yield redis

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Any]:
        """procrastinate's database."""
        connection = await asyncpg.connect(self.lab.postgres.dsn_of(DATABASE))
        try:
            yield connection
        finally:
            await connection.close()

    def _redis_url(self, peer: Peer) -> str:
        number = [each.module for each in PEERS.values()].index(peer.module) + 1
        return f"redis://{LOOPBACK}:{self.valkey.port}/{number}"

    def _environment(self, peer: Peer) -> dict[str, str]:
        return {**self.environment, "BENCH_REDIS": self._redis_url(peer)}


@dataclass
class Work:
    """A peer's running worker."""

    contest: Contest
    peer: Peer
    process: Process
    kind: str
    published: int = field(default=0, init=False)

    async def publish(self, count: int) -> None:
        """Give it `count` tasks more."""
        await self.contest.program(self.peer, "publish", self.kind, str(count))
        self.published += count

    async def done(self) -> bool:
        """Whether all of them have ended."""
        if self.peer.module == "faststream":
            return max(self.contest.stamps.started, default=0) >= self.published
        return await self.contest.waiting(self.peer) == 0


async def worked_off(contest: Contest, peer: Peer, kind: str, tasks: int) -> Sample:
    """One backlog, by a new worker that has warmed up."""
    await contest.clear(peer)
    async with contest.worker(peer, kind) as work:
        await work.publish(WARM_UP)
        await until(work.done, f"{work.process.name} works its first tasks off")
        os.killpg(work.process.pid, SIGSTOP)
        try:
            await work.publish(tasks)
            meter, began = await Meter.begin(contest.lab, work.process), time.time()
        finally:
            os.killpg(work.process.pid, SIGCONT)
        await until(work.done, f"{work.process.name} works its backlog off", pause=0.05)
        return {"tasks/s": tasks / (time.time() - began), **meter.per_task(tasks)}


def peers_of(lab: Lab) -> tuple[str, ...]:
    """The names of the peers in a run."""
    return () if lab.contest is None else tuple(PEERS)


def backlog_turns(contest: Contest | None, kind: str, effort: Effort) -> dict[str, Contestant]:
    """The turns of all peers, none without a contest."""
    if contest is None:
        return {}
    return {
        name: partial(worked_off, contest, peer, kind, effort.hundreds(peer.naps if kind == "nap" else peer.tasks))
        for name, peer in PEERS.items()
    }


async def _celery(redis: Redis) -> int:
    return int(await redis.llen(QUEUE)) + int(await redis.hlen("unacked"))


async def _dramatiq(redis: Redis) -> int:
    return int(await redis.hlen(f"dramatiq:{QUEUE}.msgs"))


async def _arq(redis: Redis) -> int:
    return int(await redis.zcard(QUEUE))


async def _taskiq(redis: Redis) -> int:
    groups = await redis.xinfo_groups(QUEUE)
    return sum(int(group["pending"]) + int(group["lag"] or 0) for group in groups)


_WAITING: Final[Mapping[str, Callable[[Redis], Awaitable[int]]]] = {
    "celery": _celery,
    "dramatiq": _dramatiq,
    "arq": _arq,
    "taskiq": _taskiq,
}


@asynccontextmanager
async def open_contest(lab: Lab) -> AsyncIterator[Contest]:
    """Valkey beside the servers of `lab`, and what the peers need in all of them.

    Raises:
        Trouble: the environment of the peers is missing.
    """
    if not PYTHON.exists():
        raise Trouble("the peers are not installed: make bench-peers does it")
    async with AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(ValkeyServer(lab.directory / "valkey"))
        lab.servers.append(valkey)
        async with Redis(host=LOOPBACK, port=valkey.port) as redis:  # as Valkey's documentation recommends it
            await redis.config_set("maxmemory-policy", "noeviction")
            await redis.config_set("appendonly", "yes")
            await redis.config_set("appendfsync", "everysec")
        loop = asyncio.get_running_loop()
        transport, stamps = await loop.create_datagram_endpoint(Stamps, (LOOPBACK, 0))
        stack.callback(transport.close)
        environment = {
            "BENCH_KAFKA": lab.kafka.bootstrap_servers,
            "BENCH_POSTGRES": lab.postgres.dsn_of(DATABASE),
            "BENCH_STAMPS": str(transport.get_extra_info("sockname")[1]),
        }
        contest = Contest(lab, valkey, stamps, environment)
        await _prepare(contest)
        yield contest


async def _prepare(contest: Contest) -> None:
    """procrastinate's tables, and FastStream's topics."""
    lab = contest.lab
    connection = await asyncpg.connect(lab.postgres.dsn)
    await connection.execute(f"CREATE DATABASE {DATABASE}")
    await connection.close()
    argv: list[str | Path] = [PYTHON, "-m", "benchmarks.peers.procrastinate"]
    async with lab.run("procrastinate-schema", argv, contest.environment) as process:
        if await process.wait():
            raise Trouble(f"procrastinate made no tables: {process.last_words()}")
    admin = AIOKafkaAdminClient(bootstrap_servers=lab.kafka.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1) for name in TOPICS])
    finally:
        await admin.close()
