"""The servers that this process waits for, and why: logged once and then rarely, and shown at `/readyz`."""

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
    reason: str
    until: float


# Replaced, never changed: the probes read them in another thread.
_failing: Mapping[int, _Failure] = MappingProxyType({})
_logged: Mapping[tuple[str, str], float] = MappingProxyType({})
_announced: frozenset[str] = frozenset()
"""Servers whose last log line said that the process waits for them."""


class Link:
    """One use of a server that the process needs, such as sending to Kafka, or consuming from it."""

    def __init__(self, server: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`server` is its name in log lines."""
        self._server = server
        self._clock = clock
        finalize(self, _forget, id(self))

    def failed(self, kind: str, reason: str, fix: str) -> None:
        """Note a failure. `kind` labels the caller's metric, `reason` is a sentence without secrets, `fix` the fix."""
        global _failing, _logged, _announced  # one process has one log
        now = self._clock()
        _failing = {**_failing, id(self): _Failure(self._server, reason, now + SHOWN)}
        line = (self._server, reason)
        if now - _logged.get(line, float("-inf")) < RARELY:
            return
        _logged = {**({} if len(_logged) >= _MOST else _logged), line: now}
        if log.hasHandlers():  # a command reports errors itself
            _announced |= {self._server}
            log.warning("waiting for %s", self._server, extra={"cause": kind, "error": reason, "do": fix})

    def ended(self) -> None:
        """Note that this use is over: nobody waits for its server any more."""
        _forget(id(self))

    def works(self) -> None:
        """Note that an attempt succeeded."""
        global _announced
        if id(self) in _failing:
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
    return sorted({f"waiting for {each.server}: {each.reason}" for each in _failing.values() if now < each.until})
