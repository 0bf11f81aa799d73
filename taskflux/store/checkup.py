"""What `taskflux doctor` asks PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from taskflux.store.database import Database, Row, statements, translated
from taskflux.store.migrate import migrations
from taskflux.store.settings import PostgresSettings

SQL: Final = statements("checkup")

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Pooling:
    """`between`: a pooler is between us and PostgreSQL; `transaction`: it is in transaction mode."""

    between: bool
    transaction: bool


@dataclass(frozen=True, slots=True)
class Checkup:
    """Questions that change nothing; every one may raise StoreError."""

    database: Database

    async def server(self) -> Row:
        """Version, settings that matter, and limits."""
        return await self.database.fetchrow(SQL["checkup_server"])

    async def clock_difference(self) -> tuple[float, float]:
        """Seconds that PostgreSQL's clock is ahead of ours, and the error of that figure."""
        await self.database.fetchrow(SQL["checkup_clock"])  # the connection is open from here on
        before = time.time()
        row = await self.database.fetchrow(SQL["checkup_clock"])
        after = time.time()
        assert row is not None
        return row["now"] - (before + after) / 2, (after - before) / 2

    async def missing_migrations(self) -> Sequence[str]:
        """Migrations of this program that the database lacks. SchemaTooOld where it has none at all."""
        done = {row["version"] for row in await self.database.fetch(SQL["checkup_schema"])}
        return [f"{each.version:04} {each.name}" for each in migrations() if each.version not in done]

    async def connections(self) -> tuple[Mapping[str, int], int]:
        """Connections of each of our processes by its label, and the number of all others."""
        rows = await self.database.fetch(SQL["checkup_connections"])
        ours = {row["label"]: row["connections"] for row in rows if row["label"] is not None}
        return ours, sum(row["connections"] for row in rows if row["label"] is None)

    async def oldest_transaction(self) -> float:
        """Seconds that the oldest open transaction of any client has lasted."""
        row = await self.database.fetchrow(SQL["checkup_oldest_transaction"])
        return float(row["seconds"]) if row else 0.0

    async def missing_partitions(self, weeks_ahead: int) -> Sequence[str]:
        """Weeks from this one on that have no partition."""
        rows = await self.database.fetch(SQL["checkup_partitions"], weeks_ahead=weeks_ahead)
        return [row["week"] for row in rows if not row["exists"]]

    async def strays(self) -> bool:
        """Whether a task is in the default partition."""
        row = await self.database.fetchrow(SQL["checkup_strays"])
        return bool(row and row["strays"])

    async def leader(self) -> float | None:
        """Seconds until the relays' leader has to renew (negative: it is late); None: none was ever elected."""
        row = await self.database.fetchrow(SQL["checkup_leader"])
        return float(row["left"]) if row else None

    async def workers(self, lease: float) -> Mapping[str, tuple[int, int]]:
        """Handler → workers alive, and workers that have been silent for three leases and still hold tasks."""
        rows = await self.database.fetch(SQL["checkup_workers"], lease=lease)
        return {row["handler"]: (row["alive"], row["lost"]) for row in rows}

    async def open_circuits(self) -> Sequence[Row]:
        """provider, error_class, reason, seconds."""
        return await self.database.fetch(SQL["checkup_circuits"])

    async def overdue(self) -> Mapping[bool, tuple[float, int]]:
        """Dead letters (True) and tasks (False) that are due and not published: longest wait in seconds, how many."""
        rows = await self.database.fetch(SQL["checkup_due"])
        return {row["dead"]: (row["seconds"], row["tasks"]) for row in rows}


async def pooling(settings: PostgresSettings) -> Pooling:
    """Find out whether there is a pooler, by two connections that keep no transaction open.

    A pooler gives its clients process ids of its own. In transaction mode, a second client is soon served by the same
    server process that has just served the first one, which is still connected.

    Raises:
        StoreError: PostgreSQL cannot be reached.
    """
    with translated():
        first = await _connect(settings)
        try:
            between = first.get_server_pid() != await first.fetchval("SELECT pg_backend_pid()")
            if not between:
                return Pooling(False, False)
            second = await _connect(settings)
            try:
                for _ in range(_TRIES):
                    served = await first.fetchval("SELECT pg_backend_pid()")
                    if served == await second.fetchval("SELECT pg_backend_pid()"):
                        return Pooling(True, True)
                return Pooling(True, False)
            finally:
                await asyncio.shield(second.close(timeout=settings.connect_timeout))
        finally:
            await asyncio.shield(first.close(timeout=settings.connect_timeout))


async def _connect(settings: PostgresSettings) -> asyncpg.Connection:
    return await asyncpg.connect(
        settings.dsn.get_secret_value(),
        timeout=settings.connect_timeout,
        command_timeout=settings.statement_timeout,
        statement_cache_size=0,
        server_settings={"application_name": "taskflux doctor"},
    )
