"""What the embedded servers have in common: started, waited for until they answer, stopped, killed."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from taskflux.local.ports import free_port
from taskflux.local.processes import Process
from taskflux.local.trouble import Trouble, from_log, gist


class Server(ABC):
    """A server process on 127.0.0.1.

    `start` returns when it answers; `stop` ends it in good order; `kill` is `kill -9`. It can be started again, and
    then comes back on the same port. It ends with the process that started it.
    """

    name: str
    start_timeout = 60.0

    def __init__(self, *, port: int | None, log: Path) -> None:
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
