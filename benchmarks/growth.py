"""What grows with the work: the steps of a task, lists, the relay's look at the outbox, and the auditor.

Two databases on one server take turns. One is empty; the other has many tasks that have ended, and some that wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any, Final, cast
from uuid import UUID

import asyncpg
from pydantic import SecretStr

from benchmarks.lab import ROOT, Lab
from benchmarks.proc import cpu_seconds
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Effort, take_turns
from benchmarks.writes import SERVER, WEEKS, Side
from taskflux.local.servers import PostgresServer
from taskflux.store.database import Database, Statement
from taskflux.store.migrate import migrate
from taskflux.store.publishing import Publishing
from taskflux.store.settings import PostgresSettings
from taskflux.store.tasks import TaskFilter, Tasks
from taskflux.stream.positions import PartitionPositions, Positions, TopicPositions
from taskflux.tasks.model import DEFAULT_TENANT
from taskflux.tasks.states import State
from taskflux.upkeep.recovery import SHARE, Auditor
from taskflux.worker.settings import Settings

TYPE: Final = "bench"
RARE: Final = 217
"""Tasks of a type that is rare."""
KEY: Final = "order"
"""The declared key of metadata."""
LOG: Final = UUID(int=77)
PARTITIONS: Final = 12
WARM: Final = 6
BATCHES: Final = 12
LOOKS: Final = 11
PAGE: Final = 50
AUDIT: Final = 5.0
"""Seconds of an audit that are measured."""
CHUNK: Final = 500_000
ROOM: Final = 67
"""Percent of a page that rows fill that have ended."""

# Tasks that have ended, over some weeks, as their lives leave them; then those that wait, the newest of all.
FILL: Final = f"""
    INSERT INTO tasks (
        id, type, state, version, attempts, max_attempts, payload, key, metadata, created_at, updated_at, due_at,
        timeline
    )
    SELECT uuidv7(moment - now()),
           CASE WHEN n % greatest($1::integer / {RARE}, 8) = 7 THEN 'rare' ELSE '{TYPE}' END,
           CASE WHEN waits THEN 'scheduled' WHEN n % 100 = 0 THEN 'dead' ELSE 'succeeded' END,
           CASE WHEN waits THEN 1 ELSE 2 END, CASE WHEN waits THEN 0 ELSE 1 END, 8, repeat('x', 300),
           CASE WHEN n % 10 = 0 THEN 'customer-' || n % 100000 END,
           CASE WHEN n % 10 = 0 THEN format('{{"{KEY}":"A-%s","by":"Ann"}}', n / 100) END, moment, moment, moment,
           (ARRAY[at || '|accepted|scheduled|0|1|', at || '|published|queued|0|1|',
                  at || '|claimed|running|1|1|process-bench@host:1', at || '|succeeded|succeeded|1|1|'])
           [1:CASE WHEN waits THEN 1 ELSE 4 END]
    FROM (
        SELECT n, n > $1 - $2::integer AS waits,
               now() - interval '7 days' * ({WEEKS} * (1 - n::float8 / ($1 + 1000))) AS moment
        FROM generate_series($3::integer, $4::integer) AS n
    ) AS made
    CROSS JOIN LATERAL (SELECT to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at) AS described
"""
WAITING: Final = f"""
    INSERT INTO due (
        task_id, type, version, publish_at, published_log, published_partition, published_offset, published_at
    )
    SELECT id, type, version, never(), '{LOG}', place % {PARTITIONS}, place / {PARTITIONS}, now()
    FROM (SELECT *, row_number() OVER (ORDER BY id) AS place FROM tasks WHERE state = 'scheduled') AS waiting
"""
PARKED: Final = "INSERT INTO parked SELECT id, tenant, type, state FROM tasks WHERE state = 'dead'"
PARTS: Final = "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'tasks'::regclass"
PID: Final = Statement("pid", "SELECT pg_backend_pid() AS pid", ())

STEPS: Final = ("insert", "confirm", "claim", "settle", "whole life")
LISTS: Final[Mapping[str, TaskFilter]] = {
    "newest": TaskFilter(),
    "succeeded": TaskFilter(State.SUCCEEDED),
    "rare": TaskFilter(type="rare"),
    "rare, succeeded": TaskFilter(State.SUCCEEDED, "rare"),
    "rare, dead": TaskFilter(State.DEAD, "rare"),
    "queued": TaskFilter(State.QUEUED),
    "scheduled": TaskFilter(State.SCHEDULED),
    "key": TaskFilter(key="customer-7770"),
    "metadata": TaskFilter(metadata={KEY: "A-70"}),
}
EMPTY, GROWN, RATIO = Column("empty", 2), Column("grown", 2), Column("×", 2, spread=True)


async def growth(lab: Lab, effort: Effort) -> Table:
    """An empty database beside a full one: CPU of PostgreSQL per task and step, milliseconds of everything else."""
    rows, waiting = effort.some(effort.rows), effort.some(effort.waiting)
    async with PostgresServer(lab.directory / "growth", settings=SERVER) as server:
        sides = {column: await _side(lab, server, column.name) for column in (EMPTY, GROWN)}
        await fill(sides[GROWN].dsn, rows, waiting)
        turns = {column.name: partial(_round, side, effort.some(BATCHES)) for column, side in sides.items()}
        taken = await take_turns(turns, effort.few)
    notes = [
        f"grown: {rows:,} tasks, of which {waiting:,} wait in Kafka",
        "CPU: of PostgreSQL's process for one connection, per task, in batches of 500",
        f"lists: a page of {PAGE}, median of {LOOKS}; rare: {RARE} tasks of a type; metadata: of a declared key",
        "audit: PostgreSQL and the relay, while a pass runs",
        "goals: CPU 1.25 times empty, rare types, keys and metadata 50 ms, next_due 2 ms, audit 5 %",
    ]
    return Table("growth", "what grows with the work", [EMPTY, GROWN, RATIO], None, side_by_side(taken), notes)


def side_by_side(taken: Mapping[str, Sequence[Sample]]) -> dict[str, list[Sample]]:
    """Each figure of both databases, round by round."""
    rounds = list(zip(taken[EMPTY.name], taken[GROWN.name], strict=True))
    return {
        figure: [
            {EMPTY.name: empty[figure], GROWN.name: grown[figure], RATIO.name: grown[figure] / max(empty[figure], 1e-9)}
            for empty, grown in rounds
        ]
        for figure in rounds[0][0]
    }


async def _side(lab: Lab, server: PostgresServer, name: str) -> Side:
    connection = await asyncpg.connect(server.dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    side = Side(lab, name, ROOT, server.dsn_of(name))
    await side.prepare()
    await migrate(_settings(side.dsn))
    return side


def _settings(dsn: str) -> PostgresSettings:
    return PostgresSettings(dsn=SecretStr(dsn), metadata_keys=KEY)


async def fill(dsn: str, rows: int, waiting: int) -> None:
    """Put `rows` tasks into a database that is migrated; the newest `waiting` of them wait in Kafka."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SET synchronous_commit = off")
        parts = [row["name"] for row in await connection.fetch(PARTS)]
        for part in parts:
            await connection.execute(f"ALTER TABLE {part} SET (fillfactor = {ROOM})")
        for first in range(1, rows + 1, CHUNK):
            await connection.execute(FILL, rows, waiting, first, min(first + CHUNK - 1, rows), timeout=3600)
        for part in parts:
            await connection.execute(f"ALTER TABLE {part} SET (fillfactor = 40)")
        for statement in (WAITING, PARKED, "VACUUM ANALYZE"):
            await connection.execute(statement, timeout=3600)
    finally:
        await connection.close()


async def _round(side: Side, batches: int) -> Sample:
    sample = await side.round(batches, empty=side.name == EMPTY.name)
    figures = {f"{step}, CPU µs": sample[f"{step} cpu"] for step in STEPS}
    database = Database(_settings(side.dsn), pool_size=1)
    await database.open()
    try:
        looks = [await _timed(Publishing(database, 15.0).next_due(0.5)) for _ in range(2 * LOOKS)]
        figures["next_due, ms"] = median(looks[LOOKS:])
        for name, wanted in LISTS.items():
            pages = [await _timed(Tasks(database).page(DEFAULT_TENANT, wanted, PAGE)) for _ in range(LOOKS)]
            figures[f"list: {name}, ms"] = median(pages)
        figures["audit, % of a core"] = await _audited(database)
    finally:
        await database.close()
    return figures


async def _timed(work: Any) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    await work
    return 1000 * (time.perf_counter() - began)


class Logs:
    """In place of Kafka: it will deliver every record."""

    async def read_all(self, topics: Mapping[str, str]) -> dict[str, TopicPositions]:
        at = {number: PartitionPositions(0, 2**60, None) for number in range(PARTITIONS)}
        return {topic: TopicPositions(LOG, at) for topic in topics}


async def _audited(database: Database) -> float:
    """Percent of a core that PostgreSQL and we take while an audit runs."""
    (row,) = await database.fetch(PID)
    auditor = Auditor(Settings(), database, cast("Positions", Logs()))
    cpu, ours, began = cpu_seconds(row["pid"]), time.process_time(), time.perf_counter()
    with suppress(TimeoutError):
        await asyncio.wait_for(auditor.audit(SHARE), AUDIT)
    took = time.perf_counter() - began
    return 100 * (cpu_seconds(row["pid"]) - cpu + time.process_time() - ours) / max(took, 1.0)
