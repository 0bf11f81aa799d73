"""What this process waits for and why: in the log once and then rarely, at `/readyz`, and on a metric."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from taskflux.telemetry import metrics

log = logging.getLogger(__name__)

RARELY: Final = 600.0
"""Seconds after which a cause that has not changed is logged again."""
SHOWN: Final = 120.0
"""Seconds for which `/readyz` shows a failure: whoever still needs the server has failed again by then."""
_MOST: Final = 100


class _Failure(NamedTuple):
    said: str
    until: float


# Replaced, never changed: the probes read them from a thread of their own.
_failing: Mapping[int, _Failure] = MappingProxyType({})
_logged: Mapping[tuple[str, str], float] = MappingProxyType({})


class Link:
    """One use of a server that the process cannot do without, such as sending to Kafka, or taking from it."""

    def __init__(self, server: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`server` as in a sentence."""
        self._server = server
        self._clock = clock
        self._told = False

    def failed(self, kind: str, said: str, do: str) -> None:
        """It does not work. `kind` is one of the metric's causes, `said` a sentence without secrets, `do` the fix."""
        global _failing, _logged  # one process has one log
        now = self._clock()
        metrics.KAFKA_FAILURES.labels(kind).inc()
        _failing = {**_failing, id(self): _Failure(f"waiting for {self._server}: {said}", now + SHOWN)}
        line = (self._server, said)
        if now - _logged.get(line, float("-inf")) < RARELY:
            return
        _logged = {**({} if len(_logged) >= _MOST else _logged), line: now}
        if log.hasHandlers():  # a command tells its reader itself
            self._told = True
            log.warning("waiting for %s", self._server, extra={"cause": kind, "error": said, "do": do})

    def works(self) -> None:
        """It works, again or still."""
        global _failing
        if id(self) not in _failing:
            return
        _failing = {link: failure for link, failure in _failing.items() if link != id(self)}
        if self._told:
            self._told = False
            log.info("%s answers again", self._server)


def waiting(clock: Callable[[], float] = time.monotonic) -> list[str]:
    """What the process waits for now, a sentence each; may be asked from any thread."""
    now = clock()
    return sorted({failure.said for failure in _failing.values() if now < failure.until})
