"""Versioned migrations, safe from several processes at once.

A database that is newer than this program is accepted: releases are rolled back over it.

The indexes of `tasks` are built after the migrations, partition by partition and without blocking writers: a migration
is one transaction, and would block them for as long as it reads the largest table.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

import asyncpg

from taskflux.store.database import translated
from taskflux.store.errors import SchemaTooOld
from taskflux.store.settings import PostgresSettings, keys_in

LOCK_SECONDS, LOCK_PAUSE, LOCK_TRIES = 3, 3.0, 20
"""How long a migration waits for the lock of a table, and how often. Others that ask for that table meanwhile wait
behind it: one long transaction must not hold up everything."""
TURN_PAUSE = 0.2
"""Seconds between two tries to be the one that builds indexes."""

_LOCK = 0x7461736B  # 'task': the advisory lock that makes migrating processes take turns
_INDEX_LOCK = _LOCK + 1
_NEXT = "SELECT next_index_step($1)"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step, applied once and never changed afterwards."""

    version: int
    name: str
    sql: str

    def __str__(self) -> str:
        return f"{self.version:04} {self.name}"


def migrations() -> Sequence[Migration]:
    """All migrations in their order."""
    found = []
    for file in files("taskflux.store").joinpath("migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.version)


async def migrate(settings: PostgresSettings) -> Sequence[Migration]:
    """Bring the database up to this program's version and return the migrations that were applied now.

    Indexes that are missing are built, too.

    Raises:
        StoreError: PostgreSQL cannot be reached or refuses a migration; no migration of this run stays then.
        StoreBusy: a transaction has held a table for two minutes.
    """
    async with _connected(settings) as connection:
        applied: Sequence[Migration] = await _patiently(lambda: _apply(connection))
        await _complete_indexes(connection, keys_in(settings.metadata_keys))
        return applied


async def _patiently(step: Callable[[], Awaitable[Any]]) -> Any:
    """Run `step`, again while others hold the locks that it needs."""
    for _ in range(LOCK_TRIES - 1):
        with suppress(asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            return await step()
        await asyncio.sleep(LOCK_PAUSE)
    return await step()


async def _complete_indexes(connection: Any, keys: Sequence[str]) -> None:
    """Build what `tasks` lacks; interrupted at any moment, the next call continues.

    Building waits for transactions that are open. So whoever waits for its turn asks again and again: with a statement
    that waits for a lock, it would be one of them.
    """
    while await connection.fetchval(_NEXT, keys):
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _INDEX_LOCK):
            await asyncio.sleep(TURN_PAUSE)
            continue
        while step := await connection.fetchval(_NEXT, keys):
            with suppress(asyncpg.UndefinedTableError):  # the partition was dropped meanwhile
                await _patiently(partial(_change_index, connection, step))


async def _change_index(connection: Any, step: str) -> None:
    # Nobody waits behind one that is built concurrently.
    seconds = 0 if "CONCURRENTLY" in step else LOCK_SECONDS
    await connection.execute(f"SET lock_timeout = '{seconds}s'")
    await connection.execute(step)


async def newer_steps(settings: PostgresSettings) -> Sequence[str]:
    """Migrations in the database that this program does not know: those of a newer release. Raises StoreError."""
    known = {migration.version for migration in migrations()}
    async with _connected(settings) as connection:
        rows = await connection.fetch("SELECT version, name FROM schema_migrations ORDER BY version")
    return [f"{row['version']:04} {row['name']}" for row in rows if row["version"] not in known]


async def check_schema(settings: PostgresSettings) -> None:
    """Return if the database has all of this program's migrations; it changes nothing.

    Raises:
        SchemaTooOld: naming those that it lacks.
        StoreError: PostgreSQL cannot be reached.
    """
    async with _connected(settings) as connection:
        done = {row["version"] for row in await connection.fetch("SELECT version FROM schema_migrations")}
    if missing := [str(migration) for migration in migrations() if migration.version not in done]:
        raise SchemaTooOld(f"it lacks {', '.join(missing)}: run `taskflux migrate`")


@asynccontextmanager
async def _connected(settings: PostgresSettings) -> AsyncIterator[Any]:
    """A connection that bypasses any pooler."""
    dsn = (settings.migrate_dsn or settings.dsn).get_secret_value()
    with translated():
        connection = await asyncpg.connect(dsn, timeout=settings.connect_timeout, statement_cache_size=0)
        try:
            yield connection
        finally:
            await asyncio.shield(connection.close(timeout=settings.connect_timeout))


async def _apply(connection: Any) -> Sequence[Migration]:
    """Apply all missing migrations, or none."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)  # however long another process takes
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
        return await _apply_missing(connection)


async def _apply_missing(connection: Any) -> Sequence[Migration]:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations ("
        " version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    done = {row["version"] for row in await connection.fetch("SELECT version FROM schema_migrations")}
    applied = [migration for migration in migrations() if migration.version not in done]
    for migration in applied:
        await connection.execute(migration.sql)
        await connection.execute(
            "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", migration.version, migration.name
        )
    return applied
