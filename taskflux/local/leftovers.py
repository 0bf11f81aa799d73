"""What a killed run has left running: noted while it lives, found and ended by the next start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]


class Notes:
    """The children of this run, in a file: name → (pid, when it began), enough to know them again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._children: dict[str, tuple[int, float]] = {}

    def add(self, name: str, pid: int) -> None:
        """Note a child that was just started."""
        with contextlib.suppress(psutil.Error):
            self._children[name] = (pid, psutil.Process(pid).create_time())
        self._write()

    def remove(self, name: str) -> None:
        """Forget a child that has ended."""
        if self._children.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        part = self._file.with_suffix(".part")
        with contextlib.suppress(OSError):  # a safety net only: a full disk must not end what runs
            part.write_text(json.dumps(self._children))
            part.replace(self._file)


async def end_noted(file: Path) -> list[str]:
    """End what stands in a former run's notes and still runs; answers the names."""
    alive = {name: pid for name, (pid, began) in _noted(file).items() if _began(pid) == began}
    steps = ((signal.SIGTERM, 1.0), (signal.SIGINT, 8.0), (signal.SIGKILL, 5.0))
    await asyncio.gather(*(end_process(pid, *steps) for pid in alive.values()))
    return sorted(alive)


async def end_process(pid: int, *steps: tuple[signal.Signals, float]) -> bool:
    """Send each step's signal to a process that need not be our child, waiting that many seconds; True: it is gone."""
    began = _began(pid)
    for number, seconds in steps:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if began is None or _began(pid) != began:
                return True
            await asyncio.sleep(0.03)
    return _began(pid) != began


def _noted(file: Path) -> dict[str, tuple[int, float]]:
    """A former run's notes; a file that is missing or was cut short counts as empty."""
    try:
        return {str(name): (int(pid), float(began)) for name, (pid, began) in json.loads(file.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def looks_like(pid: int, program: str, directory: Path) -> bool:
    """True when `pid` runs `program` in `directory`, or was told of it on its command line."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or program not in process.name():
            return False
        words = process.cmdline()
        return str(directory) in words or Path(process.cwd()) == directory
    except (psutil.Error, OSError):
        return False


def _began(pid: int) -> float | None:
    """When a living process began; None when there is none (a zombie has ended)."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None
