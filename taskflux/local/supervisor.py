"""Keeps servers running: one that dies is started again after a pause that grows, and takes no other with it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from taskflux.local.console import Console
from taskflux.local.leftovers import Notes
from taskflux.local.programs import Program
from taskflux.local.server import Server
from taskflux.local.trouble import Trouble

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
        part.keeper = asyncio.create_task(self._keep(part), name=f"keep {part.name}")
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

    async def _keep(self, part: Part) -> None:
        deaths = 0
        while True:
            began = time.monotonic()
            code = await part.server.wait()
            deaths = 1 if time.monotonic() - began > STEADY_AFTER else deaths + 1
            self._notes.remove(part.name)
            self._console.warning(part.name, f"ended ({ending(code, part.server)}); it is started again")
            if part.on_death is not None:
                await self._follow_up(part, part.on_death(part.server.pid))
            while not await self._start_again(part, pause_after(deaths)):
                deaths += 1

    async def _start_again(self, part: Part, pause: float) -> bool:
        await asyncio.sleep(pause)
        try:
            await part.server.start()
            self._notes.add(part.name, part.server.pid)
        except Trouble as trouble:
            self._console.warning(part.name, str(trouble))
            return False
        if part.on_return is not None:
            await self._follow_up(part, part.on_return())
        self._console.started(part.name, "is back")
        return True

    def _no_longer_kept(self, part: Part, keeper: asyncio.Task[None]) -> None:
        """A keeper ends with us only; that one fails otherwise is a fault of ours, and is said."""
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            self._console.warning(part.name, f"is no longer watched over: {error!r}")

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
