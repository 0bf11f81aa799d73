"""A step of PostgreSQL's clock, as the program sees it."""

from __future__ import annotations

from typing import Any

STORED_TIMES = """
SELECT attrelid::regclass::text AS table, string_agg(format('%1$I = %1$I - $1::interval', attname), ', ') AS moves
FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND atttypid = 'timestamptz'::regtype AND NOT attisdropped
  AND (relname, attname) <> ('dead_letter_counts', 'hour')  -- the name of a count, and part of its key
GROUP BY attrelid ORDER BY 1
"""


async def step(connection: Any, seconds: float) -> None:
    """Set PostgreSQL's clock by `seconds` (negative: back).

    Every stored time moves the other way instead, in one transaction: what a statement can tell of now(), it tells from
    a difference to one of them. `connection` is a superuser's: moving the
    time of a heartbeat is not a heartbeat, so that no trigger runs.
    """
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        for row in await connection.fetch(STORED_TIMES):
            await connection.execute(f"UPDATE {row['table']} SET {row['moves'].replace('$1', repr(f'{seconds} s'))}")
