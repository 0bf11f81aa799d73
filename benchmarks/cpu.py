"""The CPU that tasks take: of the process that is measured, of PostgreSQL for it, and of all servers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import asyncpg
import psutil  # type: ignore[import-untyped]

from benchmarks.lab import Lab
from benchmarks.proc import cpu_seconds, family, family_cpu_seconds
from benchmarks.report import Column
from taskflux.local.processes import Process

OWN: Final = "CPU µs/task"
POSTGRES: Final = "PostgreSQL µs/task"
SERVERS: Final = "servers µs/task"
COLUMNS: Final = (Column(OWN, 1), Column(POSTGRES, 1), Column(SERVERS, 1))
NOTE: Final = (
    "CPU: of the process and its children; PostgreSQL: of the backends of its connections; servers: of PostgreSQL,"
    " the broker and Valkey altogether"
)

BACKENDS: Final = "SELECT pid FROM pg_stat_activity WHERE client_port = ANY($1::integer[])"


@dataclass(frozen=True, slots=True)
class Meter:
    """What had been used when it began."""

    lab: Lab
    process: Process
    own: float
    backends: Mapping[int, float]
    servers: Mapping[int, float]

    @classmethod
    async def begin(cls, lab: Lab, process: Process) -> Meter:
        """Begin now; the process may be stopped."""
        connection = await asyncpg.connect(lab.postgres.dsn)
        try:
            found = await connection.fetch(BACKENDS, _ports(process.pid))
        finally:
            await connection.close()
        backends = {row["pid"]: cpu_seconds(row["pid"]) for row in found}
        servers = {server.pid: family_cpu_seconds(server.pid) for server in lab.servers}
        return cls(lab, process, family_cpu_seconds(process.pid), backends, servers)

    def per_task(self, tasks: int) -> dict[str, float]:
        """Microseconds per task since then."""
        backends = 0.0
        for pid, before in self.backends.items():
            with suppress(ProcessLookupError):  # the process has dropped a connection
                backends += cpu_seconds(pid) - before
        servers = sum(family_cpu_seconds(pid) - before for pid, before in self.servers.items())
        own = family_cpu_seconds(self.process.pid) - self.own
        return {name: value / tasks * 1e6 for name, value in ((OWN, own), (POSTGRES, backends), (SERVERS, servers))}


def _ports(pid: int) -> list[int]:
    """The local ports of a process and of all that it has started."""
    return [
        each.laddr.port for member in family(pid) for each in psutil.Process(member).net_connections() if each.laddr
    ]
