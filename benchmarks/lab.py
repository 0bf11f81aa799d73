"""The servers of a run, and the processes that are measured against them."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import SIGTERM
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from benchmarks.client import KEY
from taskflux.local.ports import LOOPBACK, free_port
from taskflux.local.processes import Process
from taskflux.local.servers import Broker, PostgresServer, Server
from taskflux.store.database import Database
from taskflux.store.migrate import migrate
from taskflux.store.settings import PostgresSettings
from taskflux.store.tasks import TaskTypes
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from taskflux.worker.handler import Handler

if TYPE_CHECKING:
    from benchmarks.peers.contest import Contest

ROOT: Final = Path(__file__).parents[1]
FLOOR_SCHEMA: Final = Path(__file__).parent / "floors" / "schema.sql"
TASKFLUX: Final = Path(sys.executable).with_name("taskflux")
PATIENCE: Final = 240.0
"""Seconds after which something that should have happened never will."""


@dataclass(frozen=True, slots=True)
class Build:
    """A TaskFlux that is measured: this one, or the code in another checkout (whose schema must be the same)."""

    name: str
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """A database and topics for one build in one measure, and the environment that leads a process to them."""

    postgres: PostgresSettings
    kafka: KafkaSettings
    environment: Mapping[str, str]

    def topic(self, name: str) -> str:
        """The topic of a task type, or of a floor."""
        return f"{self.kafka.topic_prefix}tasks.{name}"


@dataclass
class Lab:
    """PostgreSQL and a broker for the whole run."""

    directory: Path
    postgres: PostgresServer
    broker: Server
    kafka: KafkaSettings
    apache: bool
    builds: Sequence[Build]
    contest: Contest | None = None
    """The peers, in a run that has them."""
    servers: list[Server] = field(default_factory=list)
    """Those whose CPU counts."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def scenes(self, handlers: Sequence[Handler[Any]], floors: Sequence[str]) -> dict[str, Scene]:
        """A scene for each build, by its name; the first has topics for the `floors`, too."""
        first, *others = self.builds
        scenes = {first.name: await self._scene(first, handlers, floors)}
        return scenes | {build.name: await self._scene(build, handlers, ()) for build in others}

    async def _scene(self, build: Build, handlers: Sequence[Handler[Any]], floors: Sequence[str]) -> Scene:
        """An empty, migrated database, registered types, and topics for them and for the `floors`."""
        name = f"bench_{next(self._numbers)}"
        connection = await asyncpg.connect(self.postgres.dsn)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        postgres = PostgresSettings.model_validate({"dsn": self.postgres.dsn_of(name)})
        await migrate(postgres)
        connection = await asyncpg.connect(postgres.dsn.get_secret_value())
        await connection.execute(FLOOR_SCHEMA.read_text())
        await connection.close()
        database = Database(postgres, pool_size=1)
        await database.open()
        for handler in handlers:
            await TaskTypes(database).register(handler.task_type())
        await database.close()
        kafka = self.kafka.model_copy(update={"topic_prefix": f"{name}-"})
        await ensure_topics(kafka, [*(handler.type for handler in handlers), *floors])
        environment = _environment(postgres, kafka)
        if build.path is not None:
            environment["PYTHONPATH"] = str(build.path)
        return Scene(postgres, kafka, environment)

    @asynccontextmanager
    async def run(
        self, name: str, argv: Sequence[str | Path], environment: Mapping[str, str]
    ) -> AsyncIterator[Process]:
        """One of our processes, drained at the end of the block."""
        log = self.directory / f"{next(self._numbers)}-{name}.log"
        process = Process(name, argv, log=log, env={**self._plain(), **environment}, cwd=ROOT)
        process.spawn()
        try:
            yield process
        finally:
            await process.stop((SIGTERM, 15.0))

    @asynccontextmanager
    async def taskflux(
        self, handler: str, scene: Scene, port: int | None = None, further: Mapping[str, str] = MappingProxyType({})
    ) -> AsyncIterator[Process]:
        """`taskflux run <handler>`, with `further` settings."""
        environment = {**scene.environment, "TASKFLUX_HTTP__PORT": str(port or free_port()), **further}
        async with self.run(handler.replace(":", "."), [TASKFLUX, "run", handler], environment) as process:
            yield process

    @asynccontextmanager
    async def floor(self, module: str, scene: Scene, *arguments: str) -> AsyncIterator[Process]:
        """`python -m benchmarks.floors.<module>`."""
        argv = [sys.executable, "-m", f"benchmarks.floors.{module}", *arguments]
        async with self.run(f"floor-{module}-{'-'.join(arguments)}"[:80], argv, scene.environment) as process:
            yield process

    async def compile(self, scene: Scene) -> None:
        """Import what a worker and a bare consumer import, so that no process has to compile it."""
        modules = (
            "taskflux.worker.loading, taskflux.worker.worker, taskflux.handlers.process_simulated,"
            " benchmarks.floors.consumer"
        )
        async with self.run("compile", [sys.executable, "-c", f"import {modules}"], scene.environment) as process:
            await process.wait()

    def _plain(self) -> dict[str, str]:
        """Our environment without settings, and with compiled modules kept, as an installed program has them."""
        dropped = ("TASKFLUX_", "PYTHONDONTWRITEBYTECODE")
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(dropped)}
        return {**kept, "PYTHONPYCACHEPREFIX": str(self.directory / "pycache")}


@asynccontextmanager
async def open_lab(
    directory: Path, builds: Sequence[Build], *, apache: bool, settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Lab]:
    """Start the servers: the embedded ones, PostgreSQL with `settings`; with `apache`, Apache Kafka is the broker."""
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(PostgresServer(directory / "postgres", settings=settings))
        broker, described = _broker(directory, apache)
        await stack.enter_async_context(broker)
        kafka = KafkaSettings(
            bootstrap_servers=f"{LOOPBACK}:{broker.port}", replication_factor=1, produce_timeout=60.0, **described
        )
        yield Lab(directory, postgres, broker, kafka, apache, builds, servers=[postgres, broker])


def _broker(directory: Path, apache: bool) -> tuple[Server, dict[str, Any]]:
    if apache:
        from tests.kafka.broker import KafkaBroker

        return KafkaBroker(directory / "kafka"), {}
    # As `taskflux dev` has it: this broker answers an empty fetch late, and has no idempotent producer.
    settings = {"partitions": 2, "tansu": True, "idempotent": False, "fetch_max_wait_ms": 20}
    return Broker(log=directory / "broker.log"), settings


def _environment(postgres: PostgresSettings, kafka: KafkaSettings) -> dict[str, str]:
    return {
        "TASKFLUX_POSTGRES__DSN": postgres.dsn.get_secret_value(),
        "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "TASKFLUX_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
        "TASKFLUX_KAFKA__PARTITIONS": str(kafka.partitions),
        "TASKFLUX_KAFKA__REPLICATION_FACTOR": "1",
        "TASKFLUX_KAFKA__IDEMPOTENT": str(kafka.idempotent),
        "TASKFLUX_KAFKA__TANSU": str(kafka.tansu),
        "TASKFLUX_KAFKA__FETCH_MAX_WAIT_MS": str(kafka.fetch_max_wait_ms),
        "TASKFLUX_HTTP__HOST": LOOPBACK,
        "TASKFLUX_AUTH__BOOTSTRAP_KEY": KEY,
        "TASKFLUX_API__KEY": KEY,
    }


async def until(condition: Callable[[], Awaitable[bool]], what: str, pause: float = 0.1) -> None:
    """Wait for `condition`, asked every `pause` seconds.

    Raises:
        TimeoutError: it took longer than PATIENCE.
    """
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE:.0f} s: {what}")
        await asyncio.sleep(pause)


async def listening(port: int) -> None:
    """Wait until `port` accepts connections."""
    await until(partial(answers, port), f"something listens on port {port}", pause=0.05)


async def answers(port: int) -> bool:
    """Whether `port` accepts connections."""
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True
