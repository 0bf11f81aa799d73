"""`taskflux dev` as a child, and how to kill its parts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx

from taskflux.local.ports import free_port
from taskflux.local.processes import Process
from taskflux.local.servers import PostgresServer
from tests.kafka.broker import KafkaBroker

TASKFLUX = Path(sys.executable).with_name("taskflux")


class Dev:
    """One data directory, on which it is started, killed and started again; Kafka is embedded without a `broker`."""

    def __init__(
        self, directory: Path, environment: Mapping[str, str] | None = None, broker: KafkaBroker | None = None
    ) -> None:
        self.directory = directory
        self.broker = broker
        self.port = free_port()
        own = {name: value for name, value in os.environ.items() if not name.upper().startswith("TASKFLUX_")}
        if broker is not None:
            own["TASKFLUX_KAFKA__BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
            own["TASKFLUX_KAFKA__REPLICATION_FACTOR"] = "1"
        argv: list[str | Path] = [TASKFLUX, "dev", "--port", str(self.port), "--data-dir", directory, "--no-samples"]
        log = directory.with_name(f"{directory.name}.log")
        self._process = Process("taskflux dev", argv, log=log, env=own | dict(environment or {}))

    @property
    def url(self) -> str:
        """Where ingest serves."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def inbox_url(self) -> str:
        """Where the embedded inbox serves."""
        return f"http://127.0.0.1:{self._ports()['inbox']}"

    @property
    def dsn(self) -> str:
        """The embedded PostgreSQL."""
        return PostgresServer(self.directory / "postgres", self._ports()["postgres"]).dsn

    async def start(self, patience: float = 300.0) -> None:
        """Start it; returns when every part serves."""
        self._process.spawn()
        deadline = time.monotonic() + patience
        while "Serving on" not in self._process.last_words(100_000):
            if not self._process.running or time.monotonic() > deadline:
                raise RuntimeError(f"taskflux dev does not serve:\n{self._process.last_words()}")
            await asyncio.sleep(0.1)

    async def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self._process.send(signal.SIGTERM)
        return await asyncio.wait_for(self._process.wait(), 60.0)

    def kill(self, name: str) -> None:
        """`kill -9` of one part, by the name that it has on the console."""
        os.kill(self._children()[name], signal.SIGKILL)

    def kill_all(self) -> None:
        """`kill -9` of the whole tree."""
        children = self._children().values()
        self._process.kill()
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def metric(self, line: str) -> float:
        """The sum of the samples whose line begins so, over all handlers."""
        async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
            text = (await client.get(f"{self.url}/metrics")).text
        return sum(float(each.rsplit(" ", 1)[1]) for each in text.splitlines() if each.startswith(line))

    def _children(self) -> dict[str, int]:
        """Name → process id of what runs, from its own notes."""
        return {name: pid for name, (pid, _) in json.loads((self.directory / "children.json").read_text()).items()}

    def _ports(self) -> dict[str, int]:
        ports: dict[str, int] = json.loads((self.directory / "ports.json").read_text())
        return ports
