"""What became of the tasks: their rows, the mails and short messages that came, and the traces of the drill's handlers.

Two triggers of the drill's own note what no version of the protocol may do, whoever does it: a version that falls, and
a task that leaves a final state.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from tests.upgrade.load import FIRST_MOBILE

WAITING = ("scheduled", "queued", "running")
Row = Any
"""An asyncpg.Record."""

WATCH = """
CREATE TABLE drill_faults (task_id uuid, fault text);
CREATE FUNCTION drill_fault() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO drill_faults
    VALUES (NEW.id, format('%s %s became %s %s', OLD.state, OLD.version, NEW.state, NEW.version));
    RETURN NULL;
END $$;
CREATE TRIGGER drill_version_fell AFTER UPDATE ON tasks FOR EACH ROW
WHEN (NEW.version < OLD.version) EXECUTE FUNCTION drill_fault();
CREATE TRIGGER drill_final_state_left AFTER UPDATE ON tasks FOR EACH ROW
WHEN (OLD.state IN ('succeeded', 'cancelled', 'dead') AND NEW.state <> OLD.state) EXECUTE FUNCTION drill_fault();
"""

OLD_ROWS = """
INSERT INTO tasks (id, type, payload, max_attempts, state, version, attempts, created_at, updated_at, due_at, timeline)
SELECT uuidv7('-1 hour'::interval), 'simulated', '{"delayMs":1}', 8, 'succeeded', 2, 1, now() - interval '1 hour',
       now() - interval '1 hour', now() - interval '1 hour',
       ARRAY['2026-01-01T00:00:00.000000Z|accepted|scheduled|0|1|']
FROM generate_series(1, $1)
"""

PUBLISHED = """
SELECT count(*) FROM tasks t LEFT JOIN due d ON d.task_id = t.id AND NOT d.dead
WHERE t.id = ANY($1)
  AND (t.state = 'queued' OR t.state = 'scheduled' AND to_jsonb(d) ->> 'published_offset' IS NOT NULL
       AND d.publish_at > now() + interval '1 year')
"""

LEFT = """
SELECT 'claim' AS of, c.task_id, to_jsonb(c)::text AS row, t.state, t.version, false AS stale
FROM claims c LEFT JOIN tasks t ON t.id = c.task_id WHERE c.task_id <> ALL($1::uuid[])
UNION ALL
SELECT 'outbox row', d.task_id, to_jsonb(d)::text, t.state, t.version,
       NOT d.dead AND d.publish_at > now() + interval '1 year' AND d.version < t.version
FROM due d LEFT JOIN tasks t ON t.id = d.task_id WHERE d.task_id <> ALL($1::uuid[])
"""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt of the drill's own handlers; `ended` is None where its process was killed."""

    number: int
    pid: int
    began: float
    ended: float | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """Reads what stands in the tables and in the files."""

    sql: asyncpg.Pool[Any]
    inbox: Path
    traces: Path
    postgres_log: Path

    async def watch(self, rows: int) -> None:
        """Create the drill's own triggers, and as many ended tasks as `rows` says."""
        await self.sql.execute(WATCH)
        await self.sql.execute(OLD_ROWS, rows, timeout=300)

    async def drop(self, triggers: Sequence[str]) -> None:
        """Drop these triggers, whatever their tables."""
        tables = "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE tgname = $1 AND tgparentid = 0"
        for trigger in triggers:
            table = await self.sql.fetchval(tables, trigger)
            drop = f'DROP TRIGGER "{trigger}" ON {table}'
            await self.sql.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; {drop}; COMMIT")

    async def rows(self, tasks: Collection[UUID]) -> dict[UUID, Row]:
        """The rows of these."""
        columns = "id, type, state, version, attempts, losses, error_class, timeline"
        found = await self.sql.fetch(f"SELECT {columns} FROM tasks WHERE id = ANY($1)", list(tasks))
        return {row["id"]: row for row in found}

    async def waiting(self, tasks: Collection[UUID]) -> list[UUID]:
        """Those of these that have not ended."""
        waiting = "SELECT id FROM tasks WHERE id = ANY($1) AND state = ANY($2)"
        return [row["id"] for row in await self.sql.fetch(waiting, list(tasks), list(WAITING))]

    async def until_ended(self, tasks: Collection[UUID], patience: float) -> list[UUID]:
        """Those that have not ended, once all have or `patience` seconds are over."""
        deadline = time.monotonic() + patience
        while (waiting := await self.waiting(tasks)) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.25)
        return waiting

    async def until_published(self, tasks: Collection[UUID], patience: float = 60.0) -> None:
        """Return once Kafka has the records of these, and PostgreSQL has that confirmed."""
        deadline = time.monotonic() + patience
        while (count := await self.sql.fetchval(PUBLISHED, list(tasks))) < len(tasks):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{count} of {len(tasks)} tasks were published within {patience:g} s")
            await asyncio.sleep(0.1)

    async def left(self, besides: Collection[UUID], *, stale: bool, patience: float = 20.0) -> list[Row]:
        """Claims and outbox rows of other tasks than these that stay for `patience` seconds.

        `stale`: those of published records of a former version count too. While both releases run, a claim of one and a
        confirmation of the other may leave such a row, which only the auditor of the new release drops.
        """
        deadline = time.monotonic() + patience
        while True:
            rows = [row for row in await self.sql.fetch(LEFT, list(besides)) if stale or not row["stale"]]
            if not rows or time.monotonic() > deadline:
                return rows
            await asyncio.sleep(0.25)

    async def forbidden(self) -> list[str]:
        """What the drill's triggers have seen."""
        return [f"{row['task_id']}: {row['fault']}" for row in await self.sql.fetch("SELECT * FROM drill_faults")]

    async def dead_letters(self, tasks: Collection[UUID]) -> dict[UUID, int]:
        """How many each of these has."""
        count = "SELECT task_id, count(*) AS n FROM dead_letters WHERE task_id = ANY($1) GROUP BY task_id"
        return {row["task_id"]: row["n"] for row in await self.sql.fetch(count, list(tasks))}

    async def explain(self, tasks: Sequence[UUID]) -> list[str]:
        """All that the tables say of these."""
        rows = await self.sql.fetch(
            "SELECT to_jsonb(t) - 'payload' AS task, (SELECT jsonb_agg(d) FROM due d WHERE d.task_id = t.id) AS due,"
            " (SELECT jsonb_agg(c) FROM claims c WHERE c.task_id = t.id) AS claims FROM tasks t WHERE id = ANY($1)",
            list(tasks),
        )
        return [f"{row['task']} due: {row['due']} claims: {row['claims']}" for row in rows]

    def deadlocks(self) -> int:
        """How many PostgreSQL has broken so far."""
        return self.postgres_log.read_text(errors="replace").count("ERROR:  deadlock detected")

    def messages(self) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
        """Number of the task → when its mails came; the same for its short messages."""
        mails, texts = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
        database = sqlite3.connect(f"file:{self.inbox}?mode=ro", uri=True)
        try:
            for kind, recipients, at in database.execute("SELECT kind, recipients, received_at FROM messages"):
                (to,) = json.loads(recipients)
                if kind == "email":
                    mails[int(to.partition("@")[0].removeprefix("user"))].append(at)
                else:
                    texts[int(to) - FIRST_MOBILE].append(at)
        finally:
            database.close()
        return mails, texts

    def attempts(self) -> dict[UUID, list[Attempt]]:
        """What the drill's handlers did, by task, in the order of its attempts' beginnings."""
        began: dict[tuple[UUID, int, int], float] = {}
        found = defaultdict[UUID, list[Attempt]](list)
        repeated: list[tuple[tuple[UUID, int, int], float]] = []
        for line in self.traces.read_text().splitlines() if self.traces.exists() else ():
            task, attempt, pid, word, moment = line.split()
            key, at = (UUID(task), int(attempt), int(pid)), float(moment)
            if word != "begin":
                if key in began:
                    found[key[0]].append(Attempt(key[1], key[2], began.pop(key), at))
            elif key in began:
                repeated.append((key, at))
            else:
                began[key] = at
        for (task_id, number, process), at in (*began.items(), *repeated):
            found[task_id].append(Attempt(number, process, at, None))
        for attempts in found.values():
            attempts.sort(key=lambda attempt: attempt.began)
        return found
