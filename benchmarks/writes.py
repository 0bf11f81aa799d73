"""What a task's life costs PostgreSQL, step by step: the release before and this one, in turns, on one server.

Both drive their own store's statements over their own schema (`benchmarks.steps`), in batches of 500 tasks.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import asyncpg

from benchmarks.lab import ROOT, Lab
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Effort, take_turns
from taskflux.local.console import Trouble
from taskflux.local.servers import PostgresServer

RELEASE: Final = "20a089bf3be572a068b4c78dd30c5fc935d7ebd3"
"""The last commit at which publishing, claim and settlement each wrote the wide row."""
ROWS: Final = 2_000_000
WEEKS: Final = 4
WARM: Final = 6
"""Batches before the first one that counts: PostgreSQL decides on a generic plan after five, and caches fill."""
BATCHES: Final = 9
FULL: Final = 67
"""Percent of a page that rows fill that have ended."""

SERVER: Final = {
    "full_page_writes": "off",  # how many whole pages follow a checkpoint says nothing about a task
    "autovacuum": "off",  # it would write WAL while it pleases; the tables are vacuumed between the rounds
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
}

# Rows as a life leaves them: four entries in the timeline, and pages that are two thirds full.
FILL: Final = """
    INSERT INTO tasks (
        id, type, state, version, attempts, max_attempts, payload, created_at, updated_at, due_at, timeline
    )
    SELECT uuidv7(moment - now()), 'bench', state, 3, 1, 8, repeat('x', 300), moment, moment, moment, ARRAY[
        at || '|accepted|scheduled|0|1|', at || '|published|queued|0|1|',
        at || '|claimed|running|1|1|process-bench@host:1', at || '|' || event || '|' || state || '|1|1|']
    FROM (
        SELECT now() - interval '7 days' * ($2::integer * (1 - n::float8 / $1)) AS moment, n % 100 = 0 AS died
        FROM generate_series(1, $1::integer) AS n
    ) AS made
    CROSS JOIN LATERAL (
        SELECT to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at,
               CASE WHEN died THEN 'dead' ELSE 'succeeded' END AS state,
               CASE WHEN died THEN 'died' ELSE 'succeeded' END AS event
    ) AS described
"""
INTO_PARKED: Final = """
    INSERT INTO parked (task_id, tenant, type, state) SELECT id, tenant, type, state FROM tasks WHERE state = 'dead'
"""
PARTITIONS: Final = """
    SELECT c.oid::regclass::text AS name, substring(array_to_string(c.reloptions, ' ') FROM 'fillfactor=(\\d+)') AS room
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'tasks'::regclass
"""
ROOM: Final = "ALTER TABLE {} SET (fillfactor = {})"
EMPTY: Final = "TRUNCATE tasks, due, claims, workers, suspects, parked"
BETWEEN: Final = ("VACUUM due, claims, workers, suspects", "CHECKPOINT")

STEPS: Final = (
    "insert",
    "confirm",
    "claim",
    "settle",
    "claim to settle",
    "whole life",
    "a retry, added",
    "future send, whole life",
    "a cancel",
    "a lost worker, added",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the driver's figures, and how it is shown."""

    key: str
    name: str
    scale: float = 1.0
    digits: int = 0
    spread: bool = False

    def column(self, side: str) -> Column:
        """Its column for one side."""
        return Column(f"{self.name} {side}", self.digits, self.spread)


FIGURES: Final = (
    Figure("cpu", "CPU µs", 1e6, 1, spread=True),
    Figure("wal", "WAL bytes"),
    Figure("updates", "updates", digits=2),
    Figure("hot", "HOT", digits=2),
    Figure("elapsed", "elapsed µs", 1e6),
)
BEFORE, NOW = "before", "now"
CPU_RATIO, WAL_RATIO = Column("CPU ×", 2), Column("WAL ×", 2)


@dataclass(frozen=True, slots=True)
class Side:
    """One release over its own database."""

    lab: Lab
    name: str
    code: Path
    dsn: str

    async def drive(self, *arguments: str) -> str:
        """What `benchmarks.steps` prints last over this release.

        Raises:
            Trouble: it failed, or ran over other code.
        """
        path = os.pathsep.join(map(str, (self.code, ROOT)))
        environment = {"PYTHONPATH": path, "TASKFLUX_POSTGRES__DSN": self.dsn}
        argv = [sys.executable, "-P", "-m", "benchmarks.steps", *arguments]
        async with self.lab.run(f"steps-{self.name}", argv, environment) as process:
            code = await process.wait()
            said = process.last_words(20_000)
        if code or str(self.code / "taskflux") not in said.splitlines():
            raise Trouble(f"the steps of a task over {self.code} failed: {said}")
        return said.splitlines()[-1]

    async def prepare(self) -> None:
        """An empty, migrated database, with its partitions."""
        await self.drive("migrate")
        await self.run(
            *(f"SELECT create_task_partition(now() - interval '7 days' * {week})" for week in range(WEEKS + 1))
        )

    async def fill(self, rows: int) -> None:
        """Put tasks that have ended into the partitions of the last weeks."""
        connection = await asyncpg.connect(self.dsn)
        try:
            partitions = await connection.fetch(PARTITIONS)
            for partition in partitions:
                await connection.execute(ROOM.format(partition["name"], FULL))
            await connection.execute(FILL, rows, WEEKS)
            await connection.execute(INTO_PARKED)
            for partition in partitions:
                await connection.execute(ROOM.format(partition["name"], partition["room"] or 100))
            await connection.execute("VACUUM ANALYZE")
        finally:
            await connection.close()

    async def run(self, *statements: str) -> None:
        """Run statements of the measure itself."""
        connection = await asyncpg.connect(self.dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def round(self, batches: int, *, empty: bool) -> Sample:
        """One round; `<step> <figure>` → per task."""
        await self.run(*([EMPTY] if empty else []), *BETWEEN)
        found: dict[str, dict[str, float]] = json.loads(await self.drive("round", str(WARM), str(batches)))
        return {f"{step} {figure.key}": found[step][figure.key] * figure.scale for step in STEPS for figure in FIGURES}


async def writes(lab: Lab, effort: Effort) -> Table:
    """Every step of a task at empty tables, and with many tasks that have ended."""
    rows, batches = effort.some(ROWS), effort.some(BATCHES)
    before = _before(lab)
    samples: dict[str, list[Sample]] = {}
    async with PostgresServer(lab.directory / "writes", settings=SERVER) as server:
        sides = [await _side(lab, server, name, code) for name, code in ((BEFORE, before), (NOW, ROOT)) if code]
        for level in ("empty", f"{rows:,} rows"):
            if level != "empty":
                for side in sides:
                    await side.fill(rows)
            turns = {side.name: partial(side.round, batches, empty=level == "empty") for side in sides}
            taken = await take_turns(turns, effort.rounds)
            samples |= {f"{level}: {step}": side_by_side(step, taken) for step in STEPS}
    notes = [
        f"per task, in batches of 500 with payloads of 300 bytes, {batches} batches a round; one connection",
        "CPU: of PostgreSQL's process for that connection; WAL: without full-page images; elapsed: to the caller",
        "updates: of the row in tasks, after its insert; HOT: of these; a cancel is a statement of its own",
        "goals: claim to settle ≤ 35 µs of CPU, a whole life ≤ 2,800 bytes of WAL",
    ]
    if before is None:
        notes.append(f"without the columns of the release before: commit {RELEASE[:7]} is not in this copy's history")
    else:
        notes.append(f"before: {before.name}")
    return Table("writes", "what a task costs PostgreSQL, step by step", _columns(sides), None, samples, notes)


async def _side(lab: Lab, server: PostgresServer, name: str, code: Path) -> Side:
    side = Side(lab, name, code, server.dsn_of(name))
    connection = await asyncpg.connect(server.dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    await side.prepare()
    return side


def _before(lab: Lab) -> Path | None:
    """The code of the checkout that the run is against, or else of the release before; None: it is missing."""
    for build in lab.builds:
        if build.path:
            directory = lab.directory / build.path.name
            directory.mkdir()
            (directory / "taskflux").symlink_to(build.path / "taskflux")
            return directory
    return archived(lab.directory / f"commit {RELEASE[:7]}")


def archived(directory: Path) -> Path | None:
    """The new `directory`, with the code of the release before; None where git does not have that."""
    archive = ["git", "archive", RELEASE, "taskflux"]
    try:
        packed = subprocess.run(archive, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    directory.mkdir()
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        files.extractall(directory, filter="data")
    return directory


def _columns(sides: Sequence[Side]) -> list[Column]:
    """Each figure of each side, and the ratios behind the first two."""
    columns = []
    ratios = {"cpu": CPU_RATIO, "wal": WAL_RATIO} if len(sides) > 1 else {}
    for figure in FIGURES:
        columns += [figure.column(side.name) for side in sides]
        if figure.key in ratios:
            columns.append(ratios[figure.key])
    return columns


def side_by_side(step: str, taken: Mapping[str, Sequence[Sample]]) -> list[Sample]:
    """One step's figures of both sides, round by round."""
    rows: list[Sample] = []
    for round_ in zip(*taken.values(), strict=True):
        sides = dict(zip(taken, round_, strict=True))
        row = {
            figure.column(name).name: sample[f"{step} {figure.key}"]
            for name, sample in sides.items()
            for figure in FIGURES
        }
        if len(sides) > 1:
            for column, key in ((CPU_RATIO, "cpu"), (WAL_RATIO, "wal")):
                row[column.name] = sides[NOW][f"{step} {key}"] / sides[BEFORE][f"{step} {key}"]
        rows.append(row)
    return rows
