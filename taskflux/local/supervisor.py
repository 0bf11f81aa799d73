"""Our own programs as servers, and what keeps servers running.

The inbox and each handler serve once they say so over HTTP. A server that dies is started again after a pause that
grows, and takes no other with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from taskflux.local.console import Console, Trouble
from taskflux.local.ports import LOOPBACK
from taskflux.local.processes import Notes, Process
from taskflux.local.servers import Server

CLI = (sys.executable, "-P", "-m", "taskflux")
"""The command. -P keeps the current folder from being searched first: a clone has a folder of that name."""

INGEST = "taskflux.local.ingest:ingest"
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
        super().__init__(port, log=log)
        self.name = name
        self._argv = argv
        self._environment = environment
        self._ready_path = ready_path
        self._drain = _seconds(environment.get("TASKFLUX_WORKER__DRAIN_SECONDS", ""), DRAIN_SECONDS)

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
            await self._process.stop((signal.SIGTERM, self._drain + 3.0))

    def hurry(self) -> None:
        """Ask it to drain once more, which to a handler means: at once."""
        if self._process is not None:
            self._process.send(signal.SIGTERM)

    async def answers(self) -> bool:
        """True when it says that it is ready."""
        return await _answers_200(self.port, self._ready_path)


def handler(
    name: str,
    *,
    port: int,
    log: Path,
    environment: Mapping[str, str],
    target: str | None = None,
    cli: tuple[str, ...] = CLI,
) -> Program:
    """`taskflux run` of a built-in handler, or of `target`, as a child process with its HTTP side on `port`.

    Of ingest it is the one that shows the metrics of all.
    """
    own = {**environment, "TASKFLUX_HTTP__PORT": str(port)}
    runs = target or (INGEST if name == "ingest" else name)
    return Program(name, [*cli, "run", runs], port=port, log=log, environment=own)


def _seconds(text: str, otherwise: float) -> float:
    try:
        return float(text)
    except ValueError:
        return otherwise


class Inbox(Program):
    """The local inbox: SMTP, the Flow API's stand-in, and the page (`url`)."""

    def __init__(
        self, *, smtp_port: int, http_port: int, file: Path, log: Path, environment: Mapping[str, str]
    ) -> None:
        argv = [sys.executable, "-P", "-m", "taskflux.local.inbox", "--smtp-port", str(smtp_port)]
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


FIRST_PAUSE = 0.2
LONGEST_PAUSE = 15.0
STEADY_AFTER = 30.0
"""Seconds after which a server counts as running well, and its next restart comes quickly again."""


@dataclass(slots=True)
class Part:
    """A server under supervision, and what has to happen when it has died and when it is back."""

    server: Server
    detail: str = ""
    on_death: Callable[[int], Awaitable[None]] | None = None
    """Called with the dead process's id, before it is started again."""
    on_return: Callable[[], Awaitable[None]] | None = None
    keeper: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.server.name


def pause_after(deaths: int) -> float:
    """Seconds before the next start, after this many deaths in quick succession (from 1)."""
    return float(min(FIRST_PAUSE * 3 ** (deaths - 1), LONGEST_PAUSE))


class Supervisor:
    """Starts parts, keeps them running, stops them."""

    def __init__(self, console: Console, notes: Notes) -> None:
        self._console = console
        self._notes = notes
        self._parts: list[Part] = []

    async def start(self, part: Part) -> None:
        """Start a part, say so, and keep it running from then on.

        Raises:
            Trouble: it does not start.
        """
        self._parts.append(part)
        await part.server.start()
        self._notes.add(part.name, part.server.pid)
        self._console.started(part.name, part.detail)
        self._keep_running(part)

    async def start_or_retry(self, part: Part) -> None:
        """Start a part, and keep it running; if it does not start, say so, and try again as after a death."""
        try:
            await self.start(part)
        except Trouble as trouble:
            self._console.warning(part.name, str(trouble))
            self._keep_running(part, failures=1)

    async def restart(self, part: Part) -> None:
        """Drain a part and start it anew; if it does not start, say so, and try again as after a death."""
        await self._let_go(part)
        failures = 0 if await self._start_again(part, 0.0, "is reloaded") else 1
        self._keep_running(part, failures)

    async def remove(self, part: Part) -> None:
        """Drain a part for good."""
        await self._let_go(part)
        self._parts.remove(part)
        self._console.note(f"{part.name} is removed: stopped")

    async def _let_go(self, part: Part) -> None:
        if part.keeper is not None:
            part.keeper.cancel()
            await asyncio.wait([part.keeper])
        await part.server.stop()
        self._notes.remove(part.name)

    def _keep_running(self, part: Part, failures: int = 0) -> None:
        part.keeper = asyncio.create_task(self._keep(part, failures), name=f"keep {part.name}")
        part.keeper.add_done_callback(lambda task: self._no_longer_kept(part, task))

    async def start_together(self, *parts: Part) -> None:
        """Start several at once; when one does not start, the rest are not waited for.

        Raises:
            Trouble: one does not start.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(self.start(part))
        except* Trouble as troubles:
            raise troubles.exceptions[0] from None

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop our own programs, then the servers they use; `hurry` shortens both."""
        for part in self._parts:
            if part.keeper is not None:
                part.keeper.cancel()
        programs = [part for part in self._parts if isinstance(part.server, Program) and part.name != "inbox"]
        await self._stop_all(programs, hurry)
        await self._stop_all([part for part in self._parts if part not in programs], hurry)

    async def _stop_all(self, parts: list[Part], hurry: asyncio.Event) -> None:
        stopping = [asyncio.create_task(part.server.stop()) for part in parts]
        everything = asyncio.gather(*stopping)
        hurried = asyncio.ensure_future(hurry.wait())
        await asyncio.wait([everything, hurried], return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
        if not everything.done():
            for part in parts:
                if isinstance(part.server, Program):
                    part.server.hurry()
            await asyncio.wait(stopping, timeout=2.0)
            for part in parts:
                part.server.kill()
        hurried.cancel()
        await everything
        for part in parts:
            self._notes.remove(part.name)

    async def _keep(self, part: Part, failures: int) -> None:
        """Start a part again whenever it dies. `failures`: starts that have failed, so that it does not run yet."""
        deaths = failures
        while True:
            while failures and not await self._start_again(part, pause_after(deaths)):
                deaths += 1
            failures = 1
            began = time.monotonic()
            code = await part.server.wait()
            deaths = 1 if time.monotonic() - began > STEADY_AFTER else deaths + 1
            self._notes.remove(part.name)
            self._console.warning(part.name, f"ended ({ending(code, part.server)}); it is started again")
            if part.on_death is not None:
                await self._follow_up(part, part.on_death(part.server.pid))

    async def _start_again(self, part: Part, pause: float, told: str = "is back") -> bool:
        await asyncio.sleep(pause)
        try:
            await part.server.start()
            self._notes.add(part.name, part.server.pid)
        except Trouble as trouble:
            self._console.warning(part.name, str(trouble))
            return False
        if part.on_return is not None:
            await self._follow_up(part, part.on_return())
        self._console.started(part.name, told)
        return True

    def _no_longer_kept(self, part: Part, keeper: asyncio.Task[None]) -> None:
        """A keeper ends with us only; that one fails otherwise is a fault of ours, and is said."""
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            self._console.warning(part.name, f"is no longer supervised: {error!r}")

    async def _follow_up(self, part: Part, work: Awaitable[None]) -> None:
        try:
            await work
        except Trouble as trouble:
            self._console.warning(part.name, str(trouble))


def ending(code: int, server: Server | None = None) -> str:
    """How a process ended, in a word or two, and what it said where it ended by itself."""
    if code >= 0:
        words = server.last_words() if server is not None and code > 0 else ""
        return f"exit {code}: {words[:200]}" if words else f"exit {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
