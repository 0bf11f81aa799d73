"""The embedded servers, each a real one on 127.0.0.1, for `taskflux dev` and for tests.

::

    async with PostgresServer(directory / "postgres") as postgres:
        connection = await asyncpg.connect(postgres.dsn)

A server does not belong to an event loop, but to the thread that started it: it is ended by the kernel when that
thread is gone. Start it from the main thread.
"""

from taskflux.local.broker import Broker
from taskflux.local.postgres import PostgresServer
from taskflux.local.server import Server
from taskflux.local.trouble import Trouble
from taskflux.local.valkey import ValkeyServer

__all__ = ["Broker", "PostgresServer", "Server", "Trouble", "ValkeyServer"]
