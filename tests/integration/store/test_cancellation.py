"""A task that waits for PostgreSQL and is cancelled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

from taskflux.local.servers import PostgresServer
from taskflux.store.database import Database
from taskflux.store.errors import StoreError
from taskflux.store.settings import PostgresSettings
from taskflux.store.tasks import TaskTypes


class Freezer:
    """A connection to PostgreSQL that silently passes nothing on once it is frozen."""

    def __init__(self, dsn: str) -> None:
        self._there = urlsplit(dsn)
        self._way_is_free = asyncio.Event()
        self._way_is_free.set()
        self._copying: set[asyncio.Task[None]] = set()
        self._held = asyncio.Event()

    async def open(self) -> str:
        """The DSN that leads over it."""
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        head = self._there.netloc.rpartition("@")[0]
        return urlunsplit(self._there._replace(netloc=f"{head}@127.0.0.1:{port}"))

    def freeze(self) -> None:
        self._way_is_free.clear()

    async def holds_something(self) -> None:
        """Returns once something has come that does not get through."""
        await asyncio.wait_for(self._held.wait(), 10)

    async def close(self) -> None:
        self._server.close()
        for task in self._copying:
            task.cancel()
        await asyncio.gather(*self._copying, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._there.hostname is not None
        there, back = await asyncio.open_connection(self._there.hostname, self._there.port)
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._copy(source, target))
            self._copying.add(task)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if not self._way_is_free.is_set():
                    self._held.set()
                await self._way_is_free.wait()
                target.write(data)
        finally:
            target.close()


async def test_a_cancellation_is_kept_when_the_connection_hangs(postgres: PostgresServer) -> None:
    way = Freezer(postgres.dsn)
    settings = PostgresSettings.model_validate({"dsn": await way.open(), "connect_timeout": 1.0})
    database = Database(settings, pool_size=1)
    await database.open()
    types = TaskTypes(database)

    async def keep_asking() -> None:
        while True:
            with suppress(StoreError):
                await types.names()
            asked.set()
            await asyncio.sleep(0.01)

    asked = asyncio.Event()
    asking = asyncio.create_task(keep_asking())
    await asyncio.wait_for(asked.wait(), 10)
    way.freeze()
    await way.holds_something()
    asking.cancel()
    done, _ = await asyncio.wait([asking], timeout=10)
    assert done, "it goes on asking"
    assert asking.cancelled()
    await database.close()
    await way.close()
