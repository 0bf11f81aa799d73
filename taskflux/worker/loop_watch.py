"""Reports which handler blocks the event loop, and where.

A blocked loop cannot report itself, so a thread checks it twice a second. Attempts have no extra cost.
"""

from __future__ import annotations

import inspect
import logging
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from taskflux.telemetry import metrics
from taskflux.worker.handler import Handler
from taskflux.worker.process import BEAT, HANGS_AFTER, Health

log = logging.getLogger(__name__)

BLOCKED: Final = 1.0
"""Seconds of delay after which the loop counts as blocked."""
LOOK: Final = 0.5
"""Seconds between two checks."""
_PLACES: Final = 6
_LOOP: Final = frozenset({"asyncio.base_events", "asyncio.runners", "selectors", "taskflux.worker.process"})
"""Modules whose code is innermost while the loop is idle, and which call its callbacks."""
_LIBRARIES: Final = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class LoopWatch:
    """Checks the loop of the thread `thread`, which beats `health`; counts and logs when it is blocked.

    `clock` is that of `health`.
    """

    def __init__(
        self, handler: Handler[Any], health: Health, thread: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = handler.name
        self._code = getattr(inspect.unwrap(handler.function), "__code__", None)
        self._count = metrics.LOOP_BLOCKED.labels(handler.type)
        self._health = health
        self._thread = thread
        self._clock = clock
        self._beaten = self._first = health.beaten
        self._place: str | None = None  # where it is blocked
        self._stack = ""
        self._told = False

    def look(self) -> None:
        """Check once."""
        beaten = self._health.beaten
        if beaten != self._beaten:
            if self._place is not None:
                self._tell("was", beaten - self._beaten - BEAT)
            self._beaten, self._place, self._told = beaten, None, False
            return
        if beaten == self._first:  # there was no beat yet
            return
        late = self._clock() - beaten - BEAT
        if self._place is None and late >= BLOCKED:
            stack = _stack(self._thread)
            self._place = _place(stack, self._code)
            if self._place is None:  # the loop is idle: the machine or the process was suspended
                return
            self._stack = " < ".join(f"{_file(each)}:{each.f_lineno} {_name(each)}" for each in stack[:_PLACES])
            self._count.inc()
        if self._place is not None and not self._told and late >= HANGS_AFTER:
            self._told = True  # livez fails from here on: this may be the last line
            self._tell("has been", late)

    def _tell(self, how: str, seconds: float) -> None:
        duration = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
        log.warning(
            "the event loop of %s %s blocked for %s s in %s",
            *(self._name, how, duration, self._place),
            extra={"stack": self._stack},
        )


@contextmanager
def watched(handler: Handler[Any], health: Health) -> Iterator[None]:
    """Watch the loop of this thread while the block runs."""
    watch, stopped = LoopWatch(handler, health, threading.get_ident()), threading.Event()

    def keep_looking() -> None:
        while not stopped.wait(LOOK):
            watch.look()

    threading.Thread(target=keep_looking, name="loop-watch", daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def _stack(thread: int) -> list[FrameType]:
    """The frames that the loop of a thread has called, innermost first; empty while it is idle."""
    frame = sys._current_frames().get(thread)
    stack = []
    while frame is not None and frame.f_globals.get("__name__") not in _LOOP:
        stack.append(frame)
        frame = frame.f_back
    return stack


def _place(stack: list[FrameType], code: CodeType | None) -> str | None:
    """Where it is blocked: in the handler (`code`), otherwise in the application, otherwise in a library."""
    if not stack:
        return None
    handlers = [each for each in stack if each.f_code is code]
    others = [each for each in stack if not each.f_code.co_filename.startswith(_LIBRARIES) and not _is_ours(each)]
    frame = (handlers or others or stack[:1])[-1]
    return f"{_name(frame)} at line {frame.f_lineno}"


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("taskflux.")


def _file(frame: FrameType) -> str:
    return Path(frame.f_code.co_filename).name


def _name(frame: FrameType) -> str:
    return frame.f_code.co_name
