"""What this process waits for and why: in the log once and then rarely, and at `/readyz`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple
from weakref import finalize

log = logging.getLogger(__name__)

RARELY: Final = 600.0
"""Seconds after which a cause that has not changed is logged again."""
SHOWN: Final = 120.0
"""Seconds for which `/readyz` shows a failure: if the server is still needed, the next failure comes within them."""
_MOST: Final = 100


class _Failure(NamedTuple):
    server: str
    said: str
    until: float


# Replaced, never changed: the probes read them from a thread of their own.
_failing: Mapping[int, _Failure] = MappingProxyType({})
_logged: Mapping[tuple[str, str], float] = MappingProxyType({})
_announced: frozenset[str] = frozenset()
"""Servers whose last log line said that the process waits for them."""


class Link:
    """One use of a server that the process cannot do without, such as sending to Kafka, or taking from it."""

    def __init__(self, server: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`server` is its name in a sentence."""
        self._server = server
        self._clock = clock
        finalize(self, _forget, id(self))

    def failed(self, kind: str, said: str, do: str) -> None:
        """It does not work. `kind` labels the caller's metric, `said` is a sentence without secrets, `do` the fix."""
        global _failing, _logged, _announced  # one process has one log
        now = self._clock()
        _failing = {**_failing, id(self): _Failure(self._server, said, now + SHOWN)}
        line = (self._server, said)
        if now - _logged.get(line, float("-inf")) < RARELY:
            return
        _logged = {**({} if len(_logged) >= _MOST else _logged), line: now}
        if log.hasHandlers():  # a command reports errors itself
            _announced |= {self._server}
            log.warning("waiting for %s", self._server, extra={"cause": kind, "error": said, "do": do})

    def works(self) -> None:
        """An attempt succeeded."""
        global _announced
        _forget(id(self))
        if self._server not in _announced:
            return
        now = self._clock()
        if not any(each.server == self._server and now < each.until for each in _failing.values()):
            _announced -= {self._server}
            log.info("%s answers again", self._server)


def _forget(link: int) -> None:
    global _failing
    if link in _failing:
        _failing = {other: failure for other, failure in _failing.items() if other != link}


def waiting(clock: Callable[[], float] = time.monotonic) -> list[str]:
    """A sentence for each server that the process waits for; thread-safe."""
    now = clock()
    return sorted({f"waiting for {each.server}: {each.said}" for each in _failing.values() if now < each.until})
