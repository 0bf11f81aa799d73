"""`taskflux run --reload`: the process is drained and started again when its sources change.

This process imports none of the watched sources beyond what the command itself is made of, so that an error
in one ends nothing here. A syntax error keeps the old process running until it is fixed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from taskflux.cli.program import FAILED, leave, settings_or_leave
from taskflux.local.processes import die_with_parent
from taskflux.local.sources import Sources, shown, syntax_error
from taskflux.worker.loading import BUILT_IN, UnknownHandler, deployments_folder, load

MARGIN: Final = 15.0
"""Seconds that a process gets beyond what running attempts may take."""
INGEST_GRACE: Final = 10.0
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 30.0


def run_reloading(name: str) -> int:
    """Run the handler `name` until SIGTERM or Ctrl-C, anew after each change of its sources; its last exit status."""
    try:
        import watchfiles  # noqa: F401
    except ModuleNotFoundError:
        leave("--reload needs watchfiles, which is not installed: pip install watchfiles", FAILED)
    drain = settings_or_leave().worker.drain_seconds  # no change of a source would repair them
    roots = [Path(__file__).parents[1], deployments_folder(), *_own_sources(name)]
    try:
        return asyncio.run(Reloader(_own_call(), roots, max(drain, INGEST_GRACE) + MARGIN).run())
    except OSError as error:
        leave(f"the sources cannot be watched ({error}): WATCHFILES_FORCE_POLLING=true looks in turn instead", FAILED)


class Reloader:
    """One child process at a time, from `argv`; `patience` is what it gets to drain, in seconds.

    `roots` are the folders, or single files, whose change starts it again.
    """

    def __init__(self, argv: Sequence[str], roots: Sequence[Path], patience: float) -> None:
        self._argv = argv
        self._roots = roots
        self._patience = patience
        self._child: asyncio.subprocess.Process | None = None
        self._broken: set[Path] = set()
        self._changed = asyncio.Event()
        self._stopping = False

    async def run(self) -> int:
        """Until told to stop; the last child's exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told)
        watching = asyncio.create_task(self._watch())
        watching.add_done_callback(lambda _: self._changed.set())
        status, pause = 0, _FIRST_PAUSE
        try:
            while not self._stopping:
                if watching.done():
                    watching.result()
                self._changed.clear()
                began = loop.time()
                status, by_itself = await self._live()
                if by_itself and not self._stopping:
                    pause = _FIRST_PAUSE if loop.time() - began > _LAST_PAUSE else pause
                    _say(f"it ended with status {status}; it is started again at the next change, or in {pause:g} s")
                    await self._wait_for_change(pause)
                    pause = min(pause * 2, _LAST_PAUSE)
                else:
                    pause = _FIRST_PAUSE
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        return status

    async def _live(self) -> tuple[int, bool]:
        """One child, from its start to its end; its exit status, and whether nobody had told it to end."""
        # A session of its own: the terminal's Ctrl-C would count twice with the signal from here.
        self._child = child = await asyncio.create_subprocess_exec(
            *self._argv, start_new_session=True, preexec_fn=die_with_parent(signal.SIGTERM, os.getpid())
        )
        ended, changed = asyncio.create_task(child.wait()), asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait([ended, changed], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return ended.result(), True
            self._signal(child, signal.SIGTERM)
            done, _ = await asyncio.wait([ended], timeout=self._patience)
            if not done:
                _say(f"it did not end within {self._patience:g} s and is killed")
                self._signal(child, signal.SIGKILL)
            return await ended, False
        finally:
            self._child = None
            changed.cancel()
            if child.returncode is None:
                child.kill()

    async def _wait_for_change(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _watch(self) -> None:
        async for paths in Sources(self._roots).changes():
            self._note(paths)

    def _note(self, paths: Sequence[Path]) -> None:
        """Wake the child's end, unless a source is broken."""
        self._broken -= set(paths)
        for path in paths:
            if (error := syntax_error(path)) is not None:
                self._broken.add(path)
                _say(f"{error}: the old process keeps running until that is fixed")
        if not self._broken:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            _say(f"{shown(paths[0])}{more} changed: it is started again")
            self._changed.set()

    def _told(self) -> None:
        """Drain and end; told twice, do not wait."""
        if self._stopping and self._child is not None:
            self._signal(self._child, signal.SIGTERM)
        self._stopping = True
        self._changed.set()

    @staticmethod
    def _signal(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
        if child.returncode is None:
            child.send_signal(number)


def _own_sources(name: str) -> list[Path]:
    """Where the top-level package or module of `package.module:attribute` stands."""
    if name in BUILT_IN:
        return []
    top = name.partition(":")[0].partition(".")[0]
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # no name of a module
        spec = None
    if spec is None:
        try:
            load(name)  # says which there are
        except UnknownHandler as error:
            leave(str(error), FAILED)
        leave(f"{name!r} has no sources to watch", FAILED)
    places = spec.submodule_search_locations
    return [Path(place).resolve() for place in places] if places else [Path(spec.origin or "").resolve()]


def _own_call() -> list[str]:
    """The command that this process was started by, without `--reload`."""
    return [sys.executable, *(word for word in sys.orig_argv[1:] if word != "--reload")]


def _say(text: str) -> None:
    click.echo(f"taskflux: {text}", err=True)
