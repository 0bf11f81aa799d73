"""What the leader's measurements cost PostgreSQL: with nothing in the tables, and with a million rows that wait."""

from __future__ import annotations

import json
from typing import Any, Final

import asyncpg

from benchmarks.lab import Lab
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Effort
from taskflux.store.upkeep import SQL

STATEMENTS: Final = ("measure_tasks", "measure_parked", "measure_letters", "measure_workers", "measure_circuits")
ROWS: Final = 1_000_000
EMPTY: Final = "empty tables"
COLUMNS: Final = tuple(Column(f"{name.removeprefix('measure_')} ms", 2) for name in STATEMENTS)

ID: Final = "uuidv7(interval '1 microsecond' * n)"
TYPE: Final = "'type-' || n % 10"
NUMBERS: Final = "generate_series(1, $1::integer) AS n"
FILL: Final = (
    f"INSERT INTO task_types (type, schema, max_attempts, ambiguous)"
    f" SELECT {TYPE}, '{{}}', 8, 'resend' FROM generate_series(1, 10) AS n",
    f"INSERT INTO due (task_id, type, version, publish_at)"
    f" SELECT {ID}, {TYPE}, 1, now() + interval '1 second' * (n % 7200 - 3600) FROM {NUMBERS}",
    f"INSERT INTO claims (task_id, worker, type, version)"
    f" SELECT {ID}, gen_random_uuid(), {TYPE}, 1 FROM {NUMBERS} WHERE n % 100 = 0",
    f"INSERT INTO parked (task_id, tenant, type, state)"
    f" SELECT {ID}, 'default', {TYPE}, (ARRAY['dead', 'cancelled', 'uncertain'])[n % 3 + 1] FROM {NUMBERS}",
    f"INSERT INTO dead_letters (id, identity, type, error_class, reason, payload, origin)"
    f" SELECT {ID}, 'task:' || n, {TYPE}, 'Class' || n % 8, 'it went wrong', repeat('x', 200), '{{}}' FROM {NUMBERS}",
    f"INSERT INTO workers (id, handler, label, pid, type)"
    f" SELECT gen_random_uuid(), 'process-x', 'x', n, {TYPE} FROM generate_series(1, 50) AS n",
)


async def measuring(lab: Lab, effort: Effort) -> Table:
    """Every statement of a measurement, several times; milliseconds on the server."""
    (scene, *_) = (await lab.scenes([], ())).values()
    connection = await asyncpg.connect(scene.postgres.dsn.get_secret_value())
    rows = effort.some(ROWS)
    try:
        samples = {EMPTY: [await _round(connection) for _ in range(effort.rounds)]}
        for statement in FILL:
            await connection.execute(statement, *([rows] if "$1" in statement else []))
        await connection.execute("VACUUM ANALYZE")  # as autovacuum does
        full = f"{rows:,} rows in each"
        samples[full] = [await _round(connection) for _ in range(effort.rounds)]
        notes = [f"{name}: {await _blocks(connection, name):,} blocks of 8 kB" for name in STATEMENTS]
    finally:
        await connection.close()
    title = "what one measurement costs PostgreSQL: outbox, held tasks, dead letters"
    return Table("measuring", title, COLUMNS, EMPTY, samples, notes)


async def _round(connection: Any) -> Sample:
    figures = {}
    for name, column in zip(STATEMENTS, COLUMNS, strict=True):
        figures[column.name] = (await _explained(connection, name))["Execution Time"]
    return figures


async def _blocks(connection: Any, name: str) -> int:
    plan = (await _explained(connection, name))["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def _explained(connection: Any, name: str) -> dict[str, Any]:
    arguments = [30.0] if name == "measure_workers" else []
    statement = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SQL[name].text}"
    explained: dict[str, Any] = json.loads(await connection.fetchval(statement, *arguments))[0]
    return explained
