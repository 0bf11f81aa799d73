"""The threads in which a plain `def` handler runs, beside the event loop that keeps its worker's lease."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from itertools import count
from queue import SimpleQueue
from typing import Any

from taskflux.worker.process import BLOCKING

Outcome = tuple[Any, BaseException | None]
"""What a function returned, or else what it raised."""


class Threads:
    """Calls functions in threads, each in one that is free, or else in a new one.

    Whoever calls bounds their number: there are as many as there were calls at once. A thread is used again, so that
    what a function keeps in a `threading.local` lasts. They are daemons: nobody waits for one that does not return, not
    even Python when it exits.
    """

    def __init__(self, name: str) -> None:
        self._name = f"{BLOCKING}-{name}"
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._free = 0  # threads that wait for a call, less the calls that wait for a thread
        self._closed = False
        self._calls: SimpleQueue[Callable[[], Callable[[], object]] | None] = SimpleQueue()

    def call(
        self, function: Callable[[], object], returned: Callable[[bool], None] = lambda in_time: None
    ) -> asyncio.Future[Outcome]:
        """Call `function` in a thread, with the context variables of the caller; its outcome.

        Once the future is cancelled, the outcome counts for nothing, and the thread goes on. `returned` is called on
        the loop when the function has returned or raised, before anybody can see the outcome; its argument is whether
        somebody still waits for that.

        Raises:
            RuntimeError: no thread could be started; `function` is not called.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outcome] = loop.create_future()
        call = partial(_call, partial(copy_context().run, function), loop, partial(_answer, answer, returned))
        with self._lock:
            if not self._free:
                name = f"{self._name}-{next(self._numbers)}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
                self._free += 1
            self._free -= 1
        self._calls.put(call)
        return answer

    def close(self) -> None:
        """Let threads that are free end, and the others when their function has returned."""
        with self._lock:
            self._closed = True
            for _ in range(self._free):
                self._calls.put(None)
            self._free = 0

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            tell = call()
            del call  # a thread that waits keeps nothing of what it did
            with self._lock:
                closed = self._closed
                self._free += not closed
            tell()  # only now: whoever hears of it may call the next function, which needs no new thread
            del tell
            if closed:
                return


def _call(
    function: Callable[[], object], loop: asyncio.AbstractEventLoop, answer: Callable[[Outcome], None]
) -> Callable[[], object]:
    """Call `function`; what tells the loop how that ended."""
    outcome: Outcome
    try:
        outcome = function(), None
    except BaseException as error:  # noqa: BLE001 - SystemExit would end the thread without a word
        outcome = None, error

    def tell() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            loop.call_soon_threadsafe(answer, outcome)

    return tell


def _answer(answer: asyncio.Future[Outcome], returned: Callable[[bool], None], outcome: Outcome) -> None:
    in_time = not answer.done()
    returned(in_time)
    if in_time:
        answer.set_result(outcome)
