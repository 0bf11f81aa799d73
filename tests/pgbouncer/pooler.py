"""A real PgBouncer in transaction mode in front of a PostgreSQL on the loopback."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import asyncpg

from taskflux.local.console import Trouble
from taskflux.local.ports import LOOPBACK
from taskflux.local.processes import Process, identity_for, make_reachable
from taskflux.local.servers import Server

INSTALL = "on Debian: apt-get install pgbouncer"


class PgBouncer(Server):
    """One PgBouncer that lends a server connection for one transaction, to the next client.

    It knows every database of the PostgreSQL behind it; users and passwords stay as they are, so that a DSN changes
    in its address alone. It keeps few server connections, so that clients really share them.
    """

    name = "PgBouncer"
    start_timeout = 20.0

    def __init__(
        self, directory: Path, dsn: str, port: int | None = None, *, servers: int = 4, log: Path | None = None
    ) -> None:
        """`dsn` is PostgreSQL's own; `servers` is how many connections to it a database gets at most."""
        self.directory = directory.absolute()
        super().__init__(port=port, log=log or self.directory.with_name(f"{self.directory.name}.log"))
        self._behind = urlsplit(dsn)
        self._servers = servers

    @property
    def dsn(self) -> str:
        """postgresql://… of the same database, through the pooler."""
        return self.through(self._behind.geturl())

    def through(self, dsn: str) -> str:
        """`dsn`, of any database of the same PostgreSQL, through the pooler."""
        parts = urlsplit(dsn)
        credentials, _, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}@{LOOPBACK}:{self.port}"))

    async def start(self) -> None:
        """Start it and wait until it lends a connection.

        Raises:
            Trouble: there is no pgbouncer here, or it does not start; the text says why.
        """
        binary = pgbouncer_binary()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        identity = identity_for(self.directory)  # it refuses to run as root
        ini, users = self.directory / "pgbouncer.ini", self.directory / "users.txt"
        ini.write_text(self._settings(users))
        users.write_text(f"{_quoted(self._user)} {_quoted(unquote(self._behind.password or ''))}\n")
        users.chmod(0o600)
        if identity is not None:
            make_reachable(self.directory, identity)
            for path in (self.directory, ini, users):
                os.chown(path, identity.uid, identity.gid)
        # A restart may find connections of its former self in TIME_WAIT; it sets SO_REUSEADDR by itself.
        await self._launch(Process(self.name, [binary, ini], log=self.log, cwd=self.directory, user=identity))

    async def stop(self) -> None:
        """End it at once, clients or not."""
        if self._process is not None:
            await self._process.stop((signal.SIGTERM, 5.0))

    async def answers(self) -> bool:
        """True when a statement comes through to PostgreSQL."""
        try:
            connection = await asyncpg.connect(self.dsn, timeout=2.0, statement_cache_size=0)
        except (OSError, TimeoutError, asyncpg.PostgresConnectionError):
            return False
        try:
            return bool(await connection.fetchval("SELECT true", timeout=2.0))
        except (TimeoutError, asyncpg.PostgresConnectionError):
            return False
        finally:
            await connection.close()

    @property
    def _user(self) -> str:
        return unquote(self._behind.username or "postgres")

    def _settings(self, users: Path) -> str:
        return "\n".join(
            (
                "[databases]",
                f"* = host={self._behind.hostname} port={self._behind.port or 5432}",
                "[pgbouncer]",
                f"listen_addr = {LOOPBACK}",
                f"listen_port = {self.port}",
                "unix_socket_dir =",
                "auth_type = plain",
                f"auth_file = {users}",
                f"admin_users = {self._user}",
                "pool_mode = transaction",
                f"default_pool_size = {self._servers}",
                "max_client_conn = 1000",
                # Reconnect to PostgreSQL at once when it is back, and report at once that it is unreachable.
                "server_login_retry = 1",
                "server_connect_timeout = 5",
                "query_wait_timeout = 20",
                # Tests drop their databases.
                "server_idle_timeout = 5",
                "log_connections = 0",
                "log_disconnections = 0",
                "log_stats = 0",
                "",
            )
        )


def pgbouncer_binary() -> str:
    """The program; Debian installs it in /usr/sbin, which is not on every user's PATH.

    Raises:
        Trouble: it is not installed.
    """
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Trouble(f"there is no pgbouncer here ({INSTALL})")
    return found


def _quoted(text: str) -> str:
    """A field of PgBouncer's user list."""
    return '"' + text.replace('"', '""') + '"'
