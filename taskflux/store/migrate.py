"""Versioned migrations, safe from several processes at once.

A database that is newer than this program is accepted: releases are rolled back over it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import asyncpg

from taskflux.store.database import translated
from taskflux.store.settings import PostgresSettings

LOCK_SECONDS, LOCK_PAUSE, LOCK_TRIES = 3, 3.0, 20
"""How long a migration waits for the lock of a table, and how often. Others that ask for that table meanwhile wait
behind it: one long transaction must not hold up everything."""

_LOCK = 0x7461736B  # 'task': the advisory lock that makes migrating processes take turns


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

    Raises:
        StoreError: PostgreSQL cannot be reached or refuses a migration; nothing of this run stays then.
        StoreBusy: a transaction has held a table for two minutes.
    """
    async with _connected(settings) as connection:
        for _ in range(LOCK_TRIES - 1):
            with suppress(asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                return await _apply(connection)
            await asyncio.sleep(LOCK_PAUSE)
        return await _apply(connection)


async def newer_steps(settings: PostgresSettings) -> Sequence[str]:
    """Migrations in the database that this program does not know: those of a newer release. Raises StoreError."""
    known = {migration.version for migration in migrations()}
    async with _connected(settings) as connection:
        rows = await connection.fetch("SELECT version, name FROM schema_migrations ORDER BY version")
    return [f"{row['version']:04} {row['name']}" for row in rows if row["version"] not in known]


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
