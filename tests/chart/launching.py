"""How a rendered container is run on this machine: the seam between what the chart says and what runs it."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final, Protocol, TypeVar

import httpx

from taskflux.local.processes import Process
from tests.chart.containers import Container

TASKFLUX: Final = Path(sys.executable).with_name("taskflux")
"""What the image's ENTRYPOINT is here."""

PATIENCE: Final = 60.0
"""Seconds after which a wait has failed: far above what any of them takes."""

T = TypeVar("T")


class Running(Protocol):
    """A container that was started."""

    @property
    def name(self) -> str: ...

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs."""

    async def wait(self) -> int:
        """Its exit status, once it has ended."""

    def terminate(self) -> None:
        """What the kubelet does first: SIGTERM."""

    def kill(self) -> None:
        """SIGKILL: the kubelet sends it after the grace period, and a test at its end."""

    def output(self) -> str:
        """What it wrote."""


class Launcher(Protocol):
    """Runs containers: as processes here, as containers where there is an engine and an image."""

    def start(self, container: Container) -> Running:
        """Run it with exactly its environment and arguments."""


class ProcessLauncher:
    """Containers as processes of this machine, in their environment and nothing else but a PATH.

    A process has no mounts of its own: the files of its volumes stand in `directory`, and a variable that names one of
    them is pointed there.
    """

    def __init__(self, directory: Path, *, cwd: Path | None = None) -> None:
        self._directory = directory
        self._cwd = cwd
        self._started = 0

    def start(self, container: Container) -> Running:
        self._started += 1
        name = f"{container.pod.owner.name}-{container.name}-{self._started}"
        process = Process(
            name,
            [*self._program(container), *container.args],
            log=self._directory / f"{name}.log",
            env={"PATH": "/usr/bin:/bin", **self._with_files(container, self._directory / f"{name}.files")},
            cwd=self._cwd,
        )
        process.spawn()
        return _Child(process)

    def _program(self, container: Container) -> list[str]:
        if not container.command:
            return [str(TASKFLUX)]
        if container.command[0] != "taskflux":
            raise ValueError(f"{container.pod}: {container.command} is no command of the image's")
        return [str(TASKFLUX), *container.command[1:]]

    def _with_files(self, container: Container, directory: Path) -> Mapping[str, str]:
        placed = {}
        for path, content in container.files.items():
            file = directory / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            placed[path] = str(file)
            placed |= {str(folder): f"{directory}{folder}" for folder in PurePosixPath(path).parents}
        # What files set, the program finds there.
        files = {path.rpartition("/")[2] for path in container.files}
        found = {name: value for name, value in container.environment.items() if name not in files}
        return {name: placed.get(value, value) for name, value in found.items()}


class _Child:
    """A process as `Running`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def name(self) -> str:
        return self._process.name

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def terminate(self) -> None:
        self._process.send(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    def output(self) -> str:
        return self._process.last_words(20_000)


async def finished(running: Running, patience: float = PATIENCE) -> str:
    """What it wrote, once it has ended well.

    Raises:
        AssertionError: it failed, or did not end; with what it wrote.
    """
    try:
        status = await asyncio.wait_for(running.wait(), patience)
    except TimeoutError:
        running.kill()
        raise AssertionError(f"{running.name} did not end within {patience} s:\n{running.output()}") from None
    assert status == 0, f"{running.name} ended with {status}:\n{running.output()}"
    return running.output()


async def stopped(running: Running, grace: float) -> None:
    """Let it end as the kubelet does, and see that it needs no SIGKILL.

    Raises:
        AssertionError: it outlived its grace period, or ended with an error.
    """
    running.terminate()
    await finished(running, grace)


async def probed(container: Container, running: Running, probe: str, patience: float = PATIENCE) -> httpx.Response:
    """The first successful answer to a probe of the container, requested as the kubelet does.

    Raises:
        AssertionError: none came in time, or the container ended; with what it wrote.
    """
    action = container.spec[probe]["httpGet"]
    url = f"{action.get('scheme', 'HTTP').lower()}://127.0.0.1:{container.port(action['port'])}{action['path']}"

    async def answer() -> httpx.Response | None:
        assert running.returncode is None, f"{running.name} ended with {running.returncode}:\n{running.output()}"
        try:
            response = await client.get(url)
        except httpx.TransportError:
            return None
        return response if response.is_success else None

    async with httpx.AsyncClient(trust_env=False, timeout=container.spec[probe].get("timeoutSeconds", 1)) as client:
        return await eventually(answer, lambda: f"{url} answers\n{running.output()}", patience)


async def eventually(
    condition: Callable[[], Awaitable[T | None]], what: Callable[[], str], patience: float = PATIENCE
) -> T:
    """The first answer of `condition` that is not None or False."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if (answer := await condition()) not in (None, False):
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {patience} s: {what()}")
