"""The embedded servers: they start, survive a kill, restart, and end with us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil  # type: ignore[import-untyped]
import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from taskflux.local.console import Trouble
from taskflux.local.environment import Embedded, for_handlers
from taskflux.local.servers import Broker, PostgresServer, ValkeyServer
from taskflux.stream.consumer import Consumer
from taskflux.stream.settings import KafkaSettings

QUICK = {"fsync": "off", "max_connections": "23"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def postgres(servers_dir: Path) -> AsyncIterator[PostgresServer]:
    directory = servers_dir / "own" / "cluster"
    directory.parent.mkdir()
    # The leftovers of a killed initdb do not prevent a start.
    leftover = directory.with_name("cluster.new")
    leftover.mkdir()
    (leftover / "PG_VERSION").write_text("18")
    async with PostgresServer(directory, settings=QUICK) as server:
        yield server


async def value(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_rows_and_address_survive_a_kill(postgres: PostgresServer) -> None:
    dsn = postgres.dsn
    await value(dsn, "CREATE TABLE kept AS SELECT 7 AS seven")
    postgres.kill()
    assert not postgres.running
    assert await postgres.wait() == -signal.SIGKILL
    await postgres.start()
    assert postgres.dsn == dsn
    assert await value(dsn, "SELECT seven FROM kept") == 7


async def test_its_settings_are_the_ones_asked_for(postgres: PostgresServer) -> None:
    assert await value(postgres.dsn, "SHOW max_connections") == "23"


async def test_connections_without_the_password_are_refused(postgres: PostgresServer) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await value(f"postgresql://postgres:guess@127.0.0.1:{postgres.port}/taskflux?sslmode=disable", "SELECT 1")


async def test_a_server_that_a_killed_run_left_is_ended_first(postgres: PostgresServer) -> None:
    heir = PostgresServer(postgres.data_dir, postgres.port, settings=QUICK)
    await heir.start()
    try:
        assert not postgres.running
        assert await value(heir.dsn, "SELECT 1") == 1
    finally:
        await heir.stop()
        await postgres.start()


async def test_a_pid_file_of_another_program_does_not_prevent_the_start(postgres: PostgresServer) -> None:
    postgres.kill()
    pid_file = postgres.data_dir / "postmaster.pid"
    pid_file.write_text("\n".join([str(os.getpid()), *pid_file.read_text().splitlines()[1:]]))
    await postgres.start()
    assert await value(postgres.dsn, "SELECT 1") == 1


async def test_a_database_cluster_of_another_version_is_refused_with_a_message(postgres: PostgresServer) -> None:
    await postgres.stop()
    version = postgres.data_dir / "PG_VERSION"
    real = version.read_text()
    version.write_text("9\n")
    try:
        with pytest.raises(Trouble, match=r"written by PostgreSQL 9.*choose another --data-dir"):
            await postgres.start()
    finally:
        version.write_text(real)
        await postgres.start()


async def test_valkey_answers_and_restarts_on_its_port(tmp_path: Path) -> None:
    async with ValkeyServer(tmp_path / "valkey") as valkey:
        for _ in range(2):
            client = Redis.from_url(valkey.url)
            assert await client.set("a", "b")
            await client.aclose()
            valkey.kill()
            await valkey.start()


async def test_the_broker_takes_topics_and_forgets_them_with_its_process(tmp_path: Path) -> None:
    async with Broker(log=tmp_path / "broker.log") as broker:
        for _ in range(2):
            admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
            await admin.start()
            assert await admin.list_topics() == []
            await admin.create_topics([NewTopic("tasks.email", 2, 1)])
            assert await admin.list_topics() == ["tasks.email"]
            await admin.close()
            broker.kill()
            await broker.start()


async def test_the_only_member_of_a_group_does_not_wait_five_seconds_for_others(tmp_path: Path) -> None:
    async with Broker(log=tmp_path / "broker.log") as broker:
        told = for_handlers({}, Embedded(kafka=broker.bootstrap_servers), tmp_path, 5.0)
        kafka = "TASKFLUX_KAFKA__"
        options = {name.removeprefix(kafka).lower(): told[name] for name in told if name.startswith(kafka)}
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        await admin.start()
        await admin.create_topics([NewTopic("tasks.email", 2, 1)])
        await admin.close()
        consumer = Consumer(KafkaSettings.model_validate(options), "email", "tasks.email")
        await consumer.start()
        async with asyncio.timeout(4.0):
            await consumer.wait_joined()
        await consumer.stop()


async def test_a_taken_port_is_reported_with_a_message(tmp_path: Path) -> None:
    async with Broker(log=tmp_path / "one.log") as broker:
        other = ValkeyServer(tmp_path / "valkey", broker.port)
        with pytest.raises(Trouble, match=r"Valkey did not start.*port was taken"):
            await other.start()
        assert not other.running


async def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = f"""
import asyncio, pathlib
from taskflux.local.servers import Broker
async def main():
    broker = Broker(log=pathlib.Path({str(tmp_path / "broker.log")!r}))
    await broker.start()
    print(broker.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    broker_pid = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    parent.kill()
    await parent.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        await asyncio.to_thread(psutil.Process(broker_pid).wait, 10)
