"""Real servers for the session: PostgreSQL, Valkey, a Kafka broker; an own database for each test that needs it.

`TASKFLUX_TEST_BROKER=kafka` puts Apache Kafka in the embedded broker's place, `TASKFLUX_TEST_PGBOUNCER=1` puts
PgBouncer in transaction mode before PostgreSQL.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from taskflux.local.servers import Broker, PostgresServer, ValkeyServer
from taskflux.store.database import Database
from taskflux.store.migrate import migrate
from taskflux.store.settings import PostgresSettings
from taskflux.stream.settings import KafkaSettings
from taskflux.telemetry import outages
from tests.kafka.broker import KafkaBroker
from tests.pgbouncer.pooler import PgBouncer
from tests.workers import Scheduling, begin_with_the_longest

TEMPLATE = "template_taskflux"
_numbers = count(1)

NewDatabase = Callable[[], Awaitable[PostgresSettings]]


# A developer's own stack may run in this very folder: no command that a test calls shall find it.
os.environ["TASKFLUX_DEV"] = "off"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        begin_with_the_longest(items)


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    """Not among pytest's own: as root PostgreSQL runs as another user, whom pytest keeps out of its directories."""
    with tempfile.TemporaryDirectory(prefix="taskflux-tests-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest_asyncio.fixture(scope="session")
async def postgres(servers_dir: Path) -> AsyncIterator[PostgresServer]:
    async with PostgresServer(servers_dir / "postgres") as server:
        await wait_for_the_disk(server, "off")  # no test outlives the machine
        yield server


async def wait_for_the_disk(server: PostgresServer, wanted: str) -> None:
    """Set fsync; `taskflux doctor` asks for it."""
    await _administer(server.dsn, f"ALTER SYSTEM SET fsync = {wanted}")
    await _administer(server.dsn, "SELECT pg_reload_conf()")


@pytest_asyncio.fixture(scope="session")
async def valkey(servers_dir: Path) -> AsyncIterator[ValkeyServer]:
    async with ValkeyServer(servers_dir / "valkey") as server:
        yield server


@pytest_asyncio.fixture(scope="session")
async def broker(servers_dir: Path) -> AsyncIterator[Broker | KafkaBroker]:
    async with new_broker(servers_dir) as server:
        yield server


def new_broker(directory: Path) -> Broker | KafkaBroker:
    """A broker of the kind that this run tests against."""
    if os.environ.get("TASKFLUX_TEST_BROKER") == "kafka":
        return KafkaBroker(directory / f"kafka{next(_numbers)}")
    return Broker(log=directory / f"broker{next(_numbers)}.log")


@pytest_asyncio.fixture(scope="session")
async def pooler(postgres: PostgresServer, servers_dir: Path) -> AsyncIterator[PgBouncer | None]:
    if not os.environ.get("TASKFLUX_TEST_PGBOUNCER"):
        yield None
        return
    async with PgBouncer(servers_dir / "pgbouncer", postgres.dsn) as server:
        yield server


@pytest_asyncio.fixture(scope="session")
async def new_database(postgres: PostgresServer, pooler: PgBouncer | None) -> NewDatabase:
    """Creates an empty, migrated database and returns its settings."""
    await _administer(postgres.dsn, f"CREATE DATABASE {TEMPLATE}")
    await migrate(PostgresSettings.model_validate({"dsn": _at(postgres.dsn, TEMPLATE)}))

    async def create() -> PostgresSettings:
        name = f"test_{next(_numbers)}"
        # Copying files instead would begin and end with a checkpoint.
        await _administer(postgres.dsn, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY WAL_LOG")
        direct = _at(postgres.dsn, name)
        through = pooler.through(direct) if pooler else direct
        return PostgresSettings.model_validate({"dsn": through, "migrate_dsn": direct, "pooler": pooler is not None})

    return create


@pytest_asyncio.fixture
async def database(new_database: NewDatabase) -> AsyncIterator[Database]:
    """A database that is this test's alone."""
    database = Database(await new_database(), pool_size=8)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def no_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test gets the log lines about its servers, even when an earlier test has logged the same."""
    monkeypatch.setattr(outages, "_logged", {})
    monkeypatch.setattr(outages, "_failing", {})
    monkeypatch.setattr(outages, "_announced", frozenset())


@pytest.fixture(scope="session")
def kafka_settings(broker: Broker | KafkaBroker) -> KafkaSettings:
    """How to reach the session's broker; give it a topic prefix of your own."""
    return KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers,
        idempotent=getattr(broker, "idempotent", False),
        tansu=isinstance(broker, Broker),
        partitions=2,
        replication_factor=1,
        fetch_max_wait_ms=100,  # each fetch costs; a record ends it earlier
    )


async def _administer(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _at(dsn: str, database: str) -> str:
    """The same server, another database."""
    head, _, query = dsn.partition("?")
    return f"{head.rpartition('/')[0]}/{database}" + (f"?{query}" if query else "")
