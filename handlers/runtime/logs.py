"""Logs: JSON for machines, text for a terminal; the task and its trace are on every line of an attempt."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from contextvars import ContextVar
from typing import Any, Final

from pythonjsonlogger.json import JsonFormatter

from handlers.runtime.settings import LogSettings

TASK: ContextVar[tuple[str, str] | None] = ContextVar("task", default=None)
"""(task id, trace id) of the attempt that is under way here."""


class Sampler:
    """Chooses which lines of a flood are written: at most `rate` a second."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._ends = float("-inf")
        self._written = 0
        self._omitted: Counter[str] = Counter()

    def take(self, kind: str, now: float) -> int | None:
        """How many lines of this kind were left out since its last one; None: leave this one out, too.

        `now` is monotonic.
        """
        if now >= self._ends:
            self._ends, self._written = now + 1.0, 0
        if self._written >= self.rate:
            self._omitted[kind] += 1
            return None
        self._written += 1
        return self._omitted.pop(kind, 0)


outcomes: Final = Sampler(LogSettings().outcomes)
"""For lines about outcomes that need nobody's attention: they come with every task."""


class _Context(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        task = TASK.get()
        if task is not None:
            record.task_id, record.trace_id = task
        return True


class _Text(logging.Formatter):
    """One readable line: what the message says, then what goes with it."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return line + "".join(f" {name}={value}" for name, value in extra.items())


_STANDARD = {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName"}


def configure(settings: LogSettings, process: str) -> None:
    """Send this process's logs to standard error."""
    outcomes.rate = settings.outcomes
    output = logging.StreamHandler(sys.stderr)
    output.addFilter(_Context())
    output.setFormatter(_formatter(settings, process))
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(settings.level)
    # What these report, the program knows by their answers; their own lines repeat it at every try.
    for noisy in ("aiokafka", "httpx", "httpcore", "uvicorn", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.ERROR, root.level))
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class _Json(JsonFormatter):
    """One object a line; what has no value is left out."""

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in super().process_log_record(log_data).items() if value is not None}


def _formatter(settings: LogSettings, process: str) -> logging.Formatter:
    if settings.format == "text":
        return _Text("%(asctime)s %(levelname)-7s %(message)s")
    return _Json(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger"},
        static_fields={"handler": process},
        timestamp="time",
    )
