"""A task's whole way: submitted in batches, published, run and settled, by one ingest and one worker process."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import asyncpg

from benchmarks.handlers import noop
from benchmarks.lab import Lab, Scene, listening, until
from benchmarks.proc import family_cpu_seconds
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Effort, take_turns
from benchmarks.submit import Load
from taskflux.local.ports import free_port
from taskflux.local.processes import Process

COLUMNS: Final = (
    Column("tasks/s", spread=True),
    Column("CPU µs/task", 1),
    *(Column(f"{part} µs", 1) for part in ("ingest", "worker", "relay", "PostgreSQL", "Kafka")),
    Column("WAL bytes/task"),
    Column("stored bytes/task"),
)
COUNTED: Final = ("ingest", "worker", "PostgreSQL")
"""Whose CPU is that of a task: the relay only looks on, and the broker is the same for everybody."""
WAL: Final = "SELECT pg_current_wal_insert_lsn() - '0/0'"
STORED: Final = "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'tasks'::regclass"
TOOK: Final = "SELECT extract(epoch FROM max(updated_at) - min(created_at))::float8 FROM tasks"
UNSETTLED: Final = "tasks WHERE state <> 'succeeded'"


async def whole(lab: Lab, effort: Effort) -> Table:
    """Batches of 1,000 lines over four connections, while the worker runs what arrives."""
    async with AsyncExitStack() as stack:
        turns = {}
        for name, scene in (await lab.scenes([noop], ())).items():
            port = free_port()
            processes = {
                "relay": await stack.enter_async_context(lab.taskflux("relay", scene)),
                "worker": await stack.enter_async_context(lab.taskflux(f"benchmarks.handlers:{noop.name}", scene)),
                "ingest": await stack.enter_async_context(lab.taskflux("ingest", scene, port)),
            }
            await listening(port)
            turns[name] = partial(_round, lab, scene, processes, port, effort.seconds(2.0))
            await turns[name]()  # the consumer has joined its group then, and the code is warm
        samples = await take_turns(turns, effort.rounds)
    notes = [
        f"CPU µs/task: of {', '.join(COUNTED)} (all of its processes); the load generator runs beside them",
        "tasks/s: from the first row to the last outcome; WAL: as written, with full-page images",
    ]
    title = "a task's whole way: NDJSON batches, one ingest, one worker, no-op tasks"
    return Table("whole", title, COLUMNS, None, samples, notes)


async def _round(lab: Lab, scene: Scene, processes: dict[str, Process], port: int, seconds: float) -> Sample:
    postgres, broker = lab.servers[:2]
    pids = {name: process.pid for name, process in processes.items()} | {
        "PostgreSQL": postgres.pid,
        "Kafka": broker.pid,
    }
    load = Load.lines(seconds)
    connection = await asyncpg.connect(scene.postgres.dsn.get_secret_value())
    try:
        await connection.execute("TRUNCATE tasks, due, claims")
        wal, before = await connection.fetchval(WAL), {name: family_cpu_seconds(pid) for name, pid in pids.items()}
        found = await load.sent(port)
        tasks = round(found["answered"]) * load.tasks
        await until(partial(_settled, connection), "what was submitted is settled", pause=0.3)
        wal = await connection.fetchval(WAL) - wal
        took, stored = await connection.fetchval(TOOK), await connection.fetchval(STORED)
    finally:
        await connection.close()
    spent = {name: (family_cpu_seconds(pid) - before[name]) / tasks * 1e6 for name, pid in pids.items()}
    return {
        "tasks/s": tasks / took,
        "CPU µs/task": sum(spent[name] for name in COUNTED),
        **{f"{name} µs": value for name, value in spent.items()},
        "WAL bytes/task": float(wal) / tasks,
        "stored bytes/task": float(stored) / tasks,
    }


async def _settled(connection: Any) -> bool:
    """Whether all have ended. The small tables are asked first: looking through the wide one costs PostgreSQL."""
    for table in ("due", "claims", UNSETTLED):
        if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):
            return False
    return True
