"""`taskflux dev`: the embedded stack and every handler, in one command, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from taskflux.local import observe
from taskflux.local import samples as sampling
from taskflux.local.console import Console
from taskflux.local.echo import Echo
from taskflux.local.leftovers import Notes, end_noted
from taskflux.local.lock import locked
from taskflux.local.programs import CLI
from taskflux.local.stack import Stack
from taskflux.local.supervisor import Supervisor
from taskflux.local.trouble import Trouble, from_os_error


def main(port: int, data_dir: Path, samples: bool, observed: bool = False, *, cli: tuple[str, ...] = CLI) -> int:
    """Run until SIGINT or SIGTERM; answers the exit code: 0 after that, 1 when it could not start.

    `observed`: with Prometheus and Grafana, where they are installed. `cli` is the command that knows `run <handler>`,
    `migrate`, `topics` and `end-leases`.
    """
    console = Console()
    # Absolute, and without links: the name under which the next run finds what this one left.
    directory = data_dir.expanduser().resolve()
    console.title("TaskFlux", f"data in {data_dir}")
    try:
        with locked(directory) as lock:
            lock.write(f"process {os.getpid()}")
            lock.flush()
            return asyncio.run(_Run(console, directory, port, cli, observed).until_told_to_stop(samples))
    except Trouble as trouble:
        console.failure(str(trouble))
    except OSError as error:
        console.failure(str(from_os_error(error, f"working in {data_dir}")))
    return 1


class _Run:
    """One run, from the first server's start to the last one's end."""

    def __init__(self, console: Console, data_dir: Path, port: int, cli: tuple[str, ...], observed: bool) -> None:
        self._console = console
        self._data_dir = data_dir
        self._port = port
        self._cli = cli
        self._observed = observed
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def until_told_to_stop(self, samples: bool) -> int:
        """Start, serve, stop; answers the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._told)
        notes_file = self._data_dir / "children.json"
        for name in await end_noted(notes_file):
            self._console.note(f"{name} was left from a former run: ended")
        supervisor = Supervisor(self._console, Notes(notes_file))
        try:
            stack = Stack(
                self._data_dir,
                self._port,
                console=self._console,
                supervisor=supervisor,
                own_environment=os.environ,
                cli=self._cli,
            )
            serving = asyncio.create_task(self._serve(stack, supervisor, samples))
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        finally:
            await supervisor.stop(self._hurry)
        self._console.line("  Stopped.\n")
        return 0

    async def _serve(self, stack: Stack, supervisor: Supervisor, samples: bool) -> None:
        """Start and show what happens until cancelled."""
        echo = Echo(self._console, stack.logs())
        echo.outcomes = False
        following = asyncio.create_task(echo.run())
        try:
            await stack.start()
            opened = await self._observe(stack, supervisor) if self._observed else []
            self._console.title(f"Serving on {stack.url}", f"{stack.url}/docs")
            if samples:
                await sampling.send(stack.url, self._console, stack.inbox_url)
                self._console.line()
            if stack.inbox_url is not None:
                self._console.line(f"  Inbox  {self._console.bold(stack.inbox_url)}")
            for what, address in opened:
                self._console.line(f"  {what}  {self._console.bold(address)}")
            self._console.line(f"  Logs   {self._data_dir / 'logs'}")
            self._console.line(f"\n  {self._console.soft('Ctrl-C stops.')}\n")
            echo.look()  # the samples' own outcomes are known
            echo.outcomes = True
            await following
        finally:
            following.cancel()

    async def _observe(self, stack: Stack, supervisor: Supervisor) -> list[tuple[str, str]]:
        target = stack.url.removeprefix("http://")
        opened = await observe.start(self._data_dir, target, self._console, supervisor)
        return [("Status", f"{stack.url}/status"), *opened]

    def _told(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
            return
        self._console.line(f"\n  Stopping: what runs may end{self._console.soft(' (Ctrl-C again: at once)')}")
        self._stop.set()
