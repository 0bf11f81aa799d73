"""Our own programs as servers: the inbox, and each handler. They serve once they say so over HTTP."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskflux.local.ports import LOOPBACK
from taskflux.local.processes import Process
from taskflux.local.server import Server

CLI = (sys.executable, "-m", "taskflux")
DRAIN_SECONDS = 5.0
"""What a handler may take to end what it has begun."""


class Program(Server):
    """A program that answers 200 at `ready_path` on its port once it serves."""

    start_timeout = 120.0

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        port: int,
        log: Path,
        environment: Mapping[str, str],
        ready_path: str = "/readyz",
    ) -> None:
        super().__init__(port=port, log=log)
        self.name = name
        self._argv = argv
        self._environment = environment
        self._ready_path = ready_path

    @property
    def url(self) -> str:
        """http://127.0.0.1:<port>"""
        return f"http://{LOOPBACK}:{self.port}"

    async def start(self) -> None:
        """Start it; see `Server.start`."""
        await self._launch(Process(self.name, self._argv, log=self.log, env=self._environment))

    async def stop(self) -> None:
        """Ask it to drain, and end it when that takes longer than it may."""
        if self._process is not None:
            await self._process.stop((signal.SIGTERM, DRAIN_SECONDS + 3.0))

    def hurry(self) -> None:
        """Ask it to drain once more, which to a handler means: at once."""
        if self._process is not None:
            self._process.send(signal.SIGTERM)

    async def answers(self) -> bool:
        """True when it says that it is ready."""
        return await _answers_200(self.port, self._ready_path)


def handler(name: str, *, port: int, log: Path, environment: Mapping[str, str], cli: tuple[str, ...] = CLI) -> Program:
    """`taskflux run <name>` as a child process, its HTTP side on `port`."""
    own = {**environment, "TASKFLUX_HTTP__PORT": str(port)}
    return Program(name, [*cli, "run", name], port=port, log=log, environment=own)


class Inbox(Program):
    """The local inbox: SMTP, the Flow API's stand-in, and the page (`url`)."""

    def __init__(
        self, *, smtp_port: int, http_port: int, file: Path, log: Path, environment: Mapping[str, str]
    ) -> None:
        argv = [sys.executable, "-m", "taskflux.local.inbox", "--smtp-port", str(smtp_port)]
        argv += ["--http-port", str(http_port), "--file", str(file)]
        super().__init__("inbox", argv, port=http_port, log=log, environment=environment, ready_path="/livez")
        self.smtp_port = smtp_port


async def _answers_200(port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nConnection: close\r\n\r\n".encode())
        status = await asyncio.wait_for(reader.readline(), 5.0)
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
    return status.split(b" ")[1:2] == [b"200"]
