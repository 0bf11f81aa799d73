"""The servers of the drill, and the processes of both releases on them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from taskflux.local.environment import SENDER, TEMPLATE_ID
from taskflux.local.ports import LOOPBACK, free_port
from taskflux.local.processes import Process, run
from taskflux.local.servers import Broker, PostgresServer
from taskflux.local.supervisor import Inbox, Program
from taskflux.stream.settings import KafkaSettings
from tests.kafka.broker import KafkaBroker
from tests.keys import SERVER
from tests.upgrade.releases import CLI, Release

DEPLOYMENTS = {
    "ingest": "ingest",
    "relay-1": "relay",
    "relay-2": "relay",
    "email": "process-email",
    "sms": "process-sms",
    "simulated": "process-simulated",
    "held": "work:held",
    "dlq-sink": "dlq-sink",
}
"""Name → what `taskflux run` takes; the processes of one release."""

DRAIN = 5.0
LEASE = 8.0
SECTIONS: Mapping[str, Mapping[str, float]] = {
    "TASKFLUX_WORKER": {"lease_seconds": LEASE, "beat_seconds": 1.0, "drain_seconds": DRAIN},
    "TASKFLUX_RELAY": {
        "grace": 6.0,
        "max_wait": 0.1,
        "audit_seconds": 1.0,
        "leader_seconds": 3.0,
        "measure_seconds": 1.0,
    },
}
"""What counts in tens of seconds counts in seconds here."""


@dataclass(frozen=True, slots=True)
class Servers:
    """What the processes run on."""

    postgres: PostgresServer
    broker: Broker | KafkaBroker
    inbox: Inbox
    inbox_file: Path

    @classmethod
    async def start(cls, directory: Path, exits: AsyncExitStack, *, kafka: bool) -> Servers:
        """Start them; `exits` ends them."""
        file = directory / "inbox.sqlite"
        servers = cls(
            PostgresServer(directory / "postgres"),
            KafkaBroker(directory / "kafka") if kafka else Broker(log=directory / "broker.log"),
            Inbox(
                smtp_port=free_port(),
                http_port=free_port(),
                file=file,
                log=directory / "inbox.log",
                environment={},
            ),
            file,
        )
        started = (servers.postgres, servers.broker, servers.inbox)
        await asyncio.gather(*(exits.enter_async_context(server) for server in started))
        return servers

    @property
    def kafka(self) -> KafkaSettings:
        """How to reach the broker."""
        return KafkaSettings(
            bootstrap_servers=self.broker.bootstrap_servers,
            idempotent=isinstance(self.broker, KafkaBroker),
            tansu=isinstance(self.broker, Broker),
            partitions=2,
            replication_factor=1,
            fetch_max_wait_ms=100,
            session_timeout=3.0,
            produce_timeout=4.0,
        )

    def environment(self) -> dict[str, str]:
        """The settings of every process."""
        return {
            **{name: json.dumps(section) for name, section in SECTIONS.items()},
            "TASKFLUX_KAFKA": self.kafka.model_dump_json(exclude={"sasl_password"}),
            "TASKFLUX_POSTGRES__DSN": self.postgres.dsn,
            "TASKFLUX_POSTGRES__STATEMENT_TIMEOUT": "6",
            "TASKFLUX_HTTP__HOST": LOOPBACK,
            **SERVER,
            "TASKFLUX_SMTP__HOST": LOOPBACK,
            "TASKFLUX_SMTP__PORT": str(self.inbox.smtp_port),
            "TASKFLUX_SMTP__TLS": "none",
            "TASKFLUX_SMTP__SENDER": SENDER,
            "TASKFLUX_MSG91__BASE_URL": self.inbox.url,
            "TASKFLUX_MSG91__AUTH_KEY": "local",
            "TASKFLUX_MSG91__TEMPLATE_ID": TEMPLATE_ID,
            "TASKFLUX_DEV": "off",
        }


@dataclass(frozen=True, slots=True)
class Part:
    """One process."""

    release: Release
    deployment: str
    program: Program
    origin: str


@dataclass(slots=True)
class Fleet:
    """The processes, by release and deployment; `killed` are the ids of those that ended without a drain."""

    directory: Path
    work: Path
    settings: dict[str, str]
    sql: asyncpg.Pool[Any]
    killed: set[int] = field(default_factory=set)
    held_at_kills: int = 0
    _parts: dict[tuple[str, str], Part] = field(default_factory=dict)
    _count: int = 0

    async def start(self, release: Release, *deployments: str) -> None:
        """Start these processes (all of them if none is named); returns when each is ready."""
        await asyncio.gather(*(self._start(release, name) for name in deployments or DEPLOYMENTS))

    async def _start(self, release: Release, deployment: str) -> None:
        self._count += 1
        origin = f"{release.name}-{deployment}-{self._count}"
        port = free_port()
        environment = release.environment(self.work) | self.settings
        environment |= {"TASKFLUX_HTTP__PORT": str(port), "TASKFLUX_WORKER__ORIGIN": origin}
        environment["UPGRADE_TRACES"] = str(self.work / "traces")
        target = DEPLOYMENTS.get(deployment, f"work:{deployment}")
        log = self.directory / "logs" / f"{origin}.log"
        program = Program(origin, [*CLI, "run", target], port=port, log=log, environment=environment)
        self._parts[release.name, deployment] = Part(release, deployment, program, origin)
        await program.start()

    async def stop(self, release: Release, *deployments: str) -> None:
        """SIGTERM to these (all of the release's if none is named), and wait for their ends."""
        names = deployments or [name for owner, name in self._parts if owner == release.name]
        parts = [self._parts.pop((release.name, name)) for name in names]
        await asyncio.gather(*(self._end(part) for part in parts))

    async def _end(self, part: Part) -> None:
        await part.program.stop()
        if await part.program.wait() < 0:  # it did not drain in time
            self.killed.add(part.program.pid)

    def kill(self, release: Release, *deployments: str) -> None:
        """`kill -9` of these, all of the release's if none is named."""
        names = deployments or [name for owner, name in self._parts if owner == release.name]
        for name in names:
            program = self._parts.pop((release.name, name)).program
            self.killed.add(program.pid)
            program.kill()

    async def kill_in_mid_task(self, release: Release, deployment: str, patience: float = 30.0) -> None:
        """`kill -9` of a worker in a moment in which it holds claims."""
        pid = self._parts[release.name, deployment].program.pid
        held = "SELECT count(*) FROM claims c JOIN workers w ON w.id = c.worker WHERE w.pid = $1 AND NOT w.ended"
        deadline = time.monotonic() + patience
        async with self.sql.acquire() as connection:
            while not (count := await connection.fetchval(held, pid)):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{release.name} {deployment} has held no claim for {patience:g} s")
                await asyncio.sleep(0.002)
        self.kill(release, deployment)
        self.held_at_kills += count

    async def until_freed(self, patience: float = 60.0) -> None:
        """Return once the leader has freed the claims of the workers that were killed."""
        held = "SELECT count(*) FROM claims c JOIN workers w ON w.id = c.worker WHERE w.pid = ANY($1)"
        deadline = time.monotonic() + patience
        while count := await self.sql.fetchval(held, list(self.killed)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{count} claims of killed workers were not freed within {patience:g} s")
            await asyncio.sleep(0.1)

    async def let_lead(self, release: Release) -> Part:
        """The leading relay, once it is one of this release: those of the other that lead are stopped, and resign."""
        for _ in range(12):
            leader = await self._leader()
            if leader.release == release:
                return leader
            await self.stop(leader.release, leader.deployment)
            await self._leader()
            await self.start(leader.release, leader.deployment)
        raise RuntimeError(f"no relay of the {release.name} release has led")

    async def kill_leader(self, release: Release) -> None:
        """`kill -9` of the leading relay, which is one of this release; it is started again."""
        leader = await self.let_lead(release)
        self.kill(release, leader.deployment)
        await self.start(release, leader.deployment)

    async def _leader(self, patience: float = 30.0) -> Part:
        leads = "SELECT origin FROM leaders WHERE name = 'relay' AND expires_at > now()"
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            origin = await self.sql.fetchval(leads)
            for part in self._parts.values():
                if part.origin == origin:
                    return part
            await asyncio.sleep(0.1)
        raise RuntimeError(f"no relay has led for {patience:g} s")

    def runs(self, release: Release) -> bool:
        """Whether a process of this release is left."""
        return any(owner == release.name for owner, _ in self._parts)

    def urls(self) -> list[str]:
        """Where an ingest serves."""
        return [part.program.url for part in self._parts.values() if part.deployment == "ingest"]

    def died(self) -> list[str]:
        """Processes that ended by themselves."""
        return [part.origin for part in self._parts.values() if not part.program.running]

    async def migrate(self, release: Release) -> float:
        """`taskflux migrate` of this release; the seconds that it took."""
        environment = release.environment(self.work) | self.settings
        log = self.directory / "logs" / f"{release.name}-migrate.log"
        began = time.monotonic()
        await run(Process("taskflux migrate", [*CLI, "migrate"], log=log, env=environment), 120.0)
        return time.monotonic() - began

    def end(self) -> None:
        """Kill what still runs."""
        for part in self._parts.values():
            part.program.kill()
