"""Clients that leave, stall or come too late, over real sockets and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import httpx
import pytest

from taskflux.http.connections import Demands
from taskflux.store.database import Database
from taskflux.store.settings import PostgresSettings
from taskflux.store.tasks import TaskTypes
from taskflux.tasks.model import TaskType
from tests.conftest import NewDatabase
from tests.integration.http.serving import application, demand, served
from tests.integration.http.test_store import task_count
from tests.integration.system.stack import eventually

FAX = TaskType("fax", "{}", 3, "resend", None)


async def ask(port: int, path: str, body: bytes, *, headers: str = "", length: int | None = None) -> Any:
    """A request over a connection of its own, whose answer was not read yet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}"
    writer.write(f"{head}content-length: {len(body) if length is None else length}\r\n\r\n".encode() + body)
    await writer.drain()
    return reader, writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


class Locked:
    """A table that others wait for until the block ends."""

    def __init__(self, settings: PostgresSettings, table: str) -> None:
        self._dsn = settings.dsn.get_secret_value()
        self._table = table

    async def __aenter__(self) -> Locked:
        self._connection = await asyncpg.connect(self._dsn)
        self._transaction = self._connection.transaction()
        await self._transaction.start()
        await self._connection.execute(f"LOCK TABLE {self._table} IN ACCESS EXCLUSIVE MODE")
        return self

    async def waiting(self, count: int) -> None:
        """Return once this many statements wait for the table."""
        ours = "SELECT count(*) FROM pg_locks WHERE relation = $1::text::regclass AND NOT granted"

        async def enough() -> bool:
            return int(await self._connection.fetchval(ours, self._table)) >= count

        await eventually(enough, f"{count} statements wait for {self._table}")

    async def __aexit__(self, *_: object) -> None:
        await self._transaction.commit()
        await self._connection.close()


@pytest.fixture
async def settings(new_database: NewDatabase) -> PostgresSettings:
    return await new_database()


@pytest.fixture
async def database(settings: PostgresSettings) -> Any:
    database = Database(settings, pool_size=8)
    await database.open()
    yield database
    await database.close()


async def test_a_batch_of_an_unregistered_type_ends_with_its_client(
    settings: PostgresSettings, database: Database
) -> None:
    body = json.dumps([{"taskType": "fax", "payload": n} for n in range(1000)]).encode()
    async with served(await application(database)) as server:
        async with Locked(settings, "task_types") as types:
            _, writer = await ask(server.port, "/tasks/batch", body)
            await types.waiting(1)
            await hang_up(writer)
            assert (await server.client.get("/livez")).status_code == 200
        await TaskTypes(database).register(FAX)
        accepted = await server.client.post("/tasks", json={"taskType": "fax", "payload": "mine"})
        assert accepted.status_code == 202
        assert await task_count(database) == 1


async def test_what_postgresql_is_writing_is_not_undone_and_what_waits_behind_it_is_cancelled(
    settings: PostgresSettings, database: Database
) -> None:
    async with served(await application(database, patience=20)) as server:
        async with Locked(settings, "tasks") as tasks:
            _, first = await ask(server.port, "/tasks", b'{"payload": "1"}', headers="idempotency-key: 1\r\n")
            await tasks.waiting(1)
            others = [(await ask(server.port, "/tasks", b'{"payload": "2"}'))[1] for _ in range(20)]
            batch = json.dumps([{"payload": "3"}] * 2000).encode()
            others.append((await ask(server.port, "/tasks/batch", batch))[1])
            await server.client.get("/livez")
            for writer in (first, *others):
                await hang_up(writer)
            await server.client.get("/livez")
        repeat = await server.client.post("/tasks", json={"payload": "1"}, headers={"idempotency-key": "1"})
        assert (repeat.status_code, repeat.headers["idempotent-replay"]) == (202, "true")
        assert await task_count(database) == 1


async def test_a_batch_that_stalls_is_answered_when_its_time_is_up(database: Database) -> None:
    demands = Demands(request=3600.0)
    async with served(await application(database), demands=demands) as server:
        reader, writer = await ask(server.port, "/tasks/batch", b'[{"payload": "1"}, {"payload": "2"}, {"p', length=99)

        async def accepted() -> bool:
            return await task_count(database) == 2

        await eventually(accepted, "both tasks are accepted")
        demand(demands, request=0.0)
        answer = await asyncio.wait_for(reader.readuntil(b"]\n"), 10)
        assert answer.startswith(b"HTTP/1.1 202 ")
        assert answer.count(b'"status":202') == await task_count(database) == 2
        assert answer.count(b"/problems/request-timeout") == 1
        await hang_up(writer)
        reader, writer = await ask(server.port, "/tasks", b'{"payload', length=99)
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 408 ")
        await hang_up(writer)


async def test_a_drain_answers_what_a_slow_batch_has_brought(database: Database) -> None:
    async with served(await application(database), grace=4.0) as server:
        reader, writer = await ask(server.port, "/tasks/batch", b'[{"payload": "1"}, {"payload"', length=99)

        async def accepted() -> bool:
            return await task_count(database) == 1

        await eventually(accepted, "the first task is accepted")
        server.draining.set()
        answer = await asyncio.wait_for(reader.readuntil(b"]\n"), 10)
        assert answer.count(b'"status":202') == 1
        assert b"this process is shutting down" in answer
        await hang_up(writer)


async def test_a_request_without_an_end_holds_up_no_other(database: Database) -> None:
    demands = Demands(request=3600.0)
    async with served(await application(database), demands=demands) as server:
        stalled = [await ask(server.port, "/tasks", b"", length=99) for _ in range(100)]
        response: httpx.Response = await server.client.post("/tasks", json={"payload": "x"})
        assert response.status_code == 202
        demand(demands, request=0.0)
        for reader, writer in stalled:
            assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 408 ")
            await hang_up(writer)
