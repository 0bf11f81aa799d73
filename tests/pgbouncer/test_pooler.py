"""The PgBouncer that `make test-pgbouncer` puts before PostgreSQL is a real one, in transaction mode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from taskflux.local.servers import PostgresServer
from tests.pgbouncer.pooler import PgBouncer

CLIENTS = 12
ROUNDS = 40
RUNNING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE query LIKE '%pg_sleep(60)%' AND state = 'active' AND pid <> pg_backend_pid()
"""


@pytest.fixture(scope="module")
async def postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresServer]:
    directory = tmp_path_factory.mktemp("pooled")
    async with PostgresServer(directory / "postgres", settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture(scope="module")
async def pooler(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PgBouncer]:
    async with PgBouncer(tmp_path_factory.mktemp("pooler") / "pgbouncer", postgres.dsn, servers=2) as server:
        yield server


async def _statements(dsn: str, number: int, cache: int) -> None:
    """Statements of several shapes in turn, each answer checked."""
    connection = await asyncpg.connect(dsn, statement_cache_size=cache)
    try:
        for turn in range(ROUNDS):
            value = number * ROUNDS + turn
            match turn % 4:
                case 0:
                    assert await connection.fetchval("SELECT $1::int", value) == value
                case 1:
                    row = await connection.fetchrow("SELECT $1::text AS text, $2::int AS number", str(value), value)
                    assert row is not None
                    assert tuple(row) == (str(value), value)
                case 2:
                    ids = [uuid4() for _ in range(3)]
                    rows = await connection.fetch("SELECT id FROM unnest($1::uuid[]) AS id", ids)
                    assert [row["id"] for row in rows] == ids
                case _:
                    with pytest.raises(asyncpg.DivisionByZeroError):
                        await connection.fetch("SELECT 1 / $1::int", 0)
    finally:
        await connection.close()


async def test_many_clients_share_two_server_connections_without_a_statement_cache(pooler: PgBouncer) -> None:
    await asyncio.gather(*(_statements(pooler.dsn, number, cache=0) for number in range(CLIENTS)))
    connection = await asyncpg.connect(pooler.dsn, statement_cache_size=0)
    used = await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    await connection.close()
    assert used == 2


async def test_kept_prepared_statements_fail_so_this_is_transaction_mode(pooler: PgBouncer) -> None:
    outcomes = await asyncio.gather(
        *(_statements(pooler.dsn, number, cache=100) for number in range(CLIENTS)), return_exceptions=True
    )
    assert any(isinstance(outcome, asyncpg.PostgresError) for outcome in outcomes)


async def test_any_database_is_reached_through_the_pooler(pooler: PgBouncer, postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(pooler.through(postgres.dsn_of("postgres")), statement_cache_size=0)
    assert await connection.fetchval("SELECT current_database()") == "postgres"
    await connection.close()


async def test_a_cancelled_statement_is_cancelled_in_postgres_too(pooler: PgBouncer, postgres: PostgresServer) -> None:
    direct = await asyncpg.connect(postgres.dsn)
    pooled = await asyncpg.connect(pooler.dsn, statement_cache_size=0)
    with pytest.raises(TimeoutError):
        await pooled.fetch("SELECT pg_sleep(60)", timeout=0.2)
    assert await pooled.fetchval("SELECT 7") == 7  # asyncpg waits for its cancel first
    assert await direct.fetchval(RUNNING) == 0
    await pooled.close()
    await direct.close()


async def test_a_killed_pooler_is_reached_again_at_the_same_address(pooler: PgBouncer) -> None:
    address = pooler.dsn
    pooler.kill()
    assert not await pooler.answers()
    await pooler.start()
    assert pooler.dsn == address
