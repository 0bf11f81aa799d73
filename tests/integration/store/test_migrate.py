from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import asyncpg
import pytest

from taskflux.local.servers import PostgresServer
from taskflux.store.database import Database
from taskflux.store.errors import SchemaTooOld, StoreError, StoreUnavailable
from taskflux.store.migrate import Migration, migrate, migrations
from taskflux.store.settings import PostgresSettings
from taskflux.store.tasks import TaskFilter, Tasks
from tests.conftest import NewDatabase
from tests.integration.store.scene import Scene, submission

_numbers = count(1)
MIGRATE = """
import asyncio, os
from taskflux.store.migrate import migrate
from taskflux.store.settings import PostgresSettings
print(len(asyncio.run(migrate(PostgresSettings.model_validate({"dsn": os.environ["DSN"]})))))
"""


@asynccontextmanager
async def empty(postgres: PostgresServer) -> AsyncIterator[tuple[PostgresSettings, Any]]:
    """A database without any schema, and a connection to it."""
    name = f"migrate_{next(_numbers)}"
    administrator = await asyncpg.connect(postgres.dsn)
    await administrator.execute(f"CREATE DATABASE {name}")
    await administrator.close()
    dsn = postgres.dsn_of(name)
    connection = await asyncpg.connect(dsn)
    yield PostgresSettings.model_validate({"dsn": dsn}), connection
    await connection.close()


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [migration.version for migration in migrations()] == list(range(1, len(migrations()) + 1))


async def test_a_second_run_has_nothing_to_do(postgres: PostgresServer) -> None:
    async with empty(postgres) as (settings, _):
        assert await migrate(settings) == migrations()
        assert await migrate(settings) == []


async def test_six_connections_at_once_take_turns(postgres: PostgresServer) -> None:
    async with empty(postgres) as (settings, connection):
        applied = await asyncio.gather(*(migrate(settings) for _ in range(6)))
        assert sorted(map(len, applied)) == [0] * 5 + [len(migrations())]
        assert await connection.fetchval("SELECT count(*) FROM schema_migrations") == len(migrations())


async def test_four_processes_at_once_take_turns(postgres: PostgresServer) -> None:
    async with empty(postgres) as (settings, _):
        environment = {"DSN": settings.dsn.get_secret_value(), "PATH": ""}
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", MIGRATE, env=environment, stdout=asyncio.subprocess.PIPE
            )
            for _ in range(4)
        ]
        said = [(await process.communicate())[0].decode().strip() for process in processes]
        assert sorted(said) == ["0", "0", "0", str(len(migrations()))]


async def test_a_migration_that_fails_leaves_nothing_behind(postgres: PostgresServer) -> None:
    async with empty(postgres) as (settings, connection):
        await connection.execute("CREATE TABLE leaders (mine integer)")  # a foreign table of the same name
        with pytest.raises(StoreError, match="leaders"):
            await migrate(settings)
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert [row["tablename"] for row in tables] == ["leaders"]


async def test_a_long_transaction_delays_a_migration_and_nothing_else(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskflux.store.migrate.LOCK_SECONDS", 1)
    monkeypatch.setattr("taskflux.store.migrate.LOCK_PAUSE", 0.1)
    async with empty(postgres) as (settings, connection):
        await migrate(settings)
        further = [*migrations(), Migration(9999, "further", "ALTER TABLE tasks ADD COLUMN further text")]
        monkeypatch.setattr("taskflux.store.migrate.migrations", lambda: further)
        other = await asyncpg.connect(settings.dsn.get_secret_value())
        long = connection.transaction()
        await long.start()
        await connection.execute("LOCK TABLE tasks IN ROW EXCLUSIVE MODE")
        migrating = asyncio.create_task(migrate(settings))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'tasks'::regclass"
        async with asyncio.timeout(20):
            while not await connection.fetchval(waits):
                pass
            await other.execute("UPDATE tasks SET attempts = 0")  # behind the migration, which gives way
            assert not migrating.done()
            await long.commit()
            assert [step.name for step in await migrating] == ["further"]
        await other.close()


INCOMPLETE = "DROP INDEX tasks_by_type; CREATE INDEX tasks_by_type ON ONLY tasks (type, id)"


async def indexes(scene: Scene) -> tuple[int, int]:
    """Of `tasks`: how many indexes every partition has, and how many indexes they have in all that can be used."""
    (row,) = await scene.sql(
        "SELECT count(*) FILTER (WHERE indrelid = 'tasks'::regclass) AS of_all, count(*) AS in_all"
        " FROM pg_index WHERE indisvalid AND (indrelid = 'tasks'::regclass OR indrelid IN ("
        " SELECT inhrelid FROM pg_inherits WHERE inhparent = 'tasks'::regclass))"
    )
    return row["of_all"], row["in_all"]


async def until_waiting(scene: Scene) -> None:
    """Return once an index is being built and waits for a transaction."""
    waits = "SELECT FROM pg_stat_activity WHERE wait_event = 'virtualxid' AND query LIKE 'CREATE INDEX CONCURRENTLY%'"
    async with asyncio.timeout(20):
        while not await scene.sql(waits):  # noqa: ASYNC110  # what PostgreSQL does sets no event of ours
            await asyncio.sleep(0.01)


async def test_indexes_are_built_while_tasks_are_accepted(new_database: NewDatabase) -> None:
    settings = await new_database()
    async with Scene.of(settings, Database(settings)) as scene:
        await scene.accepted(10, metadata='{"order":7}')
        await scene.direct.execute(INCOMPLETE)
        assert await indexes(scene) == (2, 2 * 7)
        other = await asyncpg.connect(settings.migrate_dsn.get_secret_value() if settings.migrate_dsn else "")
        async with other.transaction():
            await other.execute("DELETE FROM tasks")  # holds its table until the end
            migrating = asyncio.create_task(migrate(settings.model_copy(update={"metadata_keys": "order"})))
            await until_waiting(scene)
            await scene.accepted(10, metadata='{"order":8}')
            assert not migrating.done()
        assert await migrating == []
        assert await indexes(scene) == (4, 4 * 7)
        page = await scene.tasks.page("default", TaskFilter(metadata={"order": "8"}), 50)
        assert len(page.rows) == 10
        await other.close()


async def test_an_index_that_was_interrupted_is_built_again(new_database: NewDatabase) -> None:
    settings = await new_database()
    async with Scene.of(settings, Database(settings)) as scene:
        await scene.direct.execute(INCOMPLETE)
        await scene.direct.execute("CREATE INDEX tasks_default_by_type ON tasks_default (type, id)")
        await scene.direct.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'tasks_default_by_type'::regclass"
        )
        await migrate(settings)
        assert await indexes(scene) == (3, 3 * 7)


async def test_a_partition_of_a_week_to_come_has_every_index(new_database: NewDatabase) -> None:
    settings = (await new_database()).model_copy(update={"metadata_keys": "order"})
    await migrate(settings)
    async with Scene.of(settings, Database(settings)) as scene:
        assert await scene.upkeep.make_partitions(6) == 2
        assert await indexes(scene) == (4, 4 * 9)


def test_a_key_that_cannot_name_an_index_is_refused() -> None:
    with pytest.raises(ValueError, match="'not a key' cannot be indexed"):
        PostgresSettings(metadata_keys="order, not a key")


async def test_a_database_of_a_newer_release_is_accepted(new_database: NewDatabase) -> None:
    settings = await new_database()
    assert settings.migrate_dsn is not None
    connection = await asyncpg.connect(settings.migrate_dsn.get_secret_value())
    await connection.execute("INSERT INTO schema_migrations (version, name) VALUES (9999, 'of the future')")
    await connection.execute("ALTER TABLE tasks ADD COLUMN of_the_future text")
    await connection.close()
    assert await migrate(settings) == []
    database = Database(settings)
    await database.open()
    task = submission()
    await Tasks(database).insert([task], 0.0)
    row = await Tasks(database).get(task.id, "default")
    assert row is not None
    await database.close()


async def test_a_database_that_was_not_migrated_says_what_to_do(postgres: PostgresServer) -> None:
    async with empty(postgres) as (settings, _):
        database = Database(settings)
        await database.open()
        with pytest.raises(SchemaTooOld, match="taskflux migrate"):
            await Tasks(database).insert([submission()], 0.0)
        await database.close()


async def test_an_unreachable_dsn_gives_a_readable_error() -> None:
    with pytest.raises(StoreUnavailable):
        await migrate(PostgresSettings.model_validate({"dsn": "postgresql://x@127.0.0.1:1/x", "connect_timeout": 5.0}))


async def test_a_missing_user_or_database_gives_a_readable_error(postgres: PostgresServer) -> None:
    for dsn in (postgres.dsn_of("nowhere"), postgres.dsn.replace("postgres:", "somebody:", 1)):
        with pytest.raises(StoreUnavailable, match="TASKFLUX_POSTGRES__DSN"):
            await migrate(PostgresSettings.model_validate({"dsn": dsn}))
