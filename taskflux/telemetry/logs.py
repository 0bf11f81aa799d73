"""Logs: JSON for machines, text for a terminal; every line about a task has its id and its trace.

A line never quotes what was sent. Errors are logged by class and place; a traceback contains no values, and is logged
only with its task or request. The reason of an outcome, which may quote a provider, is `scrubbed`, or left out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO
from uuid import UUID

from pythonjsonlogger.json import JsonFormatter

from taskflux.tasks.errors import class_name
from taskflux.telemetry import tracing
from taskflux.telemetry.settings import LogSettings
from taskflux.telemetry.tracing import TRACE

log = logging.getLogger(__name__)

TASK: ContextVar[UUID | None] = ContextVar("task", default=None)
"""The current task; its trace is `tracing.TRACE`."""

_PLACES: Final = 6
_FRAMES, _CAUSES = 50, 10  # of a traceback, the innermost; of an error's causes, the nearest
_COLOURS: Final = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
# Their errors reach the program anyway; their own lines would repeat them at every try.
_NOISY: Final = ("httpx", "httpcore", "uvicorn", "asyncio", "urllib3", "redis")
_KAFKA: Final = "aiokafka"
_REASON: Final = 500  # characters of a reason that are logged
_PERSONAL: Final = re.compile(
    r"""
      (?P<server>\b[a-z][a-z0-9+-]{1,15}://)(?:[^\s/@<>"']*@)?(?P<host>[^\s/?#<>"'(),;]*)(?P<path>[^\s<>"'(),;]*)
    | (?P<id>\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b)
    | (?P<code>\b[245]\d\d[ -][245]\.\d{1,3}\.\d{1,3}\b)  # of an SMTP server: two codes side by side
    | (?P<text>"[^"]*(?:"|$) | “[^”]*(?:”|$) | «[^»]*(?:»|$) | (?<!\w)['`‘](?:(?!['`’](?!\w)).)*(?:['`’]|$))
    | (?<![^\s<>"'(),;:=])(?P<address>[^\s<>"'(),;:=@＠]+[@＠][^\s<>"'(),;]*)
    | (?P<number>[+(]{0,2}\d(?:[ ().-]{0,2}\d){6,} | \d{6,})
    | (?P<word>[^\W_]+)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_WORD: Final = re.compile(r"[^\W_]+")
_BETWEEN: Final = {each: " " for each in range(128) if not chr(each).isalnum()}
_MANY_DIGITS: Final = re.compile(r"\d{6}")
_SENT_AGAIN: Final = re.compile(r"\(sent\)(?: \(sent\))+")
_COMMON: Final = frozenset((
    "all", "and", "any", "are", "because", "been", "but", "can", "cannot", "could", "did", "does", "for", "from",
    "had", "has", "have", "into", "its", "more", "not", "now", "off", "only", "other", "our", "out", "over", "than",
    "that", "the", "their", "them", "then", "there", "they", "this", "too", "until", "was", "were", "when", "which",
    "while", "with", "would", "you", "your",
))  # fmt: skip
"""English words that never identify a person; neither do shorter ones."""


class Sampler:
    """Chooses which lines of a flood are written: at most `rate` a second."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._ends = float("-inf")
        self._written = 0
        self._omitted: Counter[str] = Counter()

    def admits(self, logger: logging.Logger, level: int, kind: str) -> bool:
        """Whether `logger` may `write` a line now. If not, the next line of its `kind` says how many were omitted."""
        if not logger.isEnabledFor(level):
            return False
        now = self._clock()
        if now >= self._ends:
            self._ends, self._written = now + 1.0, 0
        if self._written >= self.rate:
            self._omitted[kind] += 1
            return False
        self._written += 1
        return True

    def write(self, logger: logging.Logger, level: int, message: str, kind: str, about: Mapping[str, object]) -> None:
        """Log a line that it `admits`. Values of `about` that are None are left out."""
        extra = {**about, "omitted": self._omitted.pop(kind, None)}
        logger.log(level, message, extra={name: value for name, value in extra.items() if value is not None})

    def log(self, logger: logging.Logger, level: int, message: str, kind: str, about: Mapping[str, object]) -> None:
        """Log a line, or omit it."""
        if self.admits(logger, level, kind):
            self.write(logger, level, message, kind, about)


outcomes: Final = Sampler(LogSettings().outcomes)
"""For lines about normal outcomes: there is one for every task."""
requests: Final = Sampler(LogSettings().outcomes)
"""For lines about requests that were answered."""
failed_requests: Final = Sampler(LogSettings().outcomes)
"""For lines about requests that failed by our fault: separate, so that other lines cannot hide them."""


_with_reasons = True


def reason(text: str, sent: Sequence[str | None]) -> str | None:
    """The reason of an outcome for a log line; None if the settings leave reasons out.

    `sent` is the JSON of the task's data, see `scrubbed`.
    """
    return scrubbed(text, sent) if _with_reasons else None


def scrubbed(text: str, sent: Sequence[str | None] = ()) -> str:
    """The beginning of `text` without what looks like personal data, and without words that were `sent` (JSON).

    docs/observability.md states the rule.
    """
    words = text[:_REASON].split()
    if len(text) > _REASON:
        words[-1:] = ["…"]  # an incomplete address would not be recognized
    known = _words(" ".join(value for each in sent if each is not None for value in _values(each)))
    return _SENT_AGAIN.sub("(sent)", _PERSONAL.sub(partial(_replaced, known), " ".join(words)))


def _replaced(known: str, found: re.Match[str]) -> str:
    match found.lastgroup:
        case "word":
            word = found[0]
            if len(word) > 5 and _MANY_DIGITS.search(word):
                return "(number)"
            names_nobody = word.isascii() and (len(word) < 3 or (word.isdigit() and len(word) < 4))
            if names_nobody or (folded := word.casefold()) in _COMMON or f" {folded}" not in known:
                return word
            return "(sent)"
        case "id" | "code":
            return found[0]
        case "path":  # the last part of an address with a server
            host = found["host"]
            was_sent = host and _words(host) in known
            return found["server"] + ("(sent)" if was_sent else host) + ("/…" if found["path"] else "")
        case kind:
            return f"({kind})"


def _words(text: str) -> str:
    """The words of a text, with a space before each and after the last; for ASCII, without a regular expression."""
    folded = text.casefold()
    words = folded.translate(_BETWEEN).split() if folded.isascii() else _WORD.findall(folded)
    return " ".join(["", *words, ""])


def _values(text: str) -> Iterator[str]:
    """All values in a JSON text; the text itself if it is not JSON."""
    try:
        left = [json.loads(text)]
    except (ValueError, RecursionError):
        left = [text]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        else:
            yield str(value)


def configure(settings: LogSettings, process: str) -> None:
    """Send this process's logs to standard error."""
    global _with_reasons  # one process has one log
    _with_reasons = settings.reasons
    for sampler in (outcomes, requests, failed_requests):
        sampler.rate = settings.outcomes
    output = logging.StreamHandler(sys.stderr)
    output.addFilter(_OfKafka(settings.levels))
    output.addFilter(_Context())
    output.setFormatter(_formatter(settings, process))
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(settings.level)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(max(logging.ERROR, root.level))
    for name, level in settings.levels.items():
        logging.getLogger(name).setLevel(level)
    kafka = logging.getLogger(_KAFKA)
    kafka.setLevel(min(kafka.level or logging.WARNING, logging.WARNING))  # `taskflux.stream.client` reads its lines
    _catch_other_errors()


def frames(error: BaseException) -> str:
    """A traceback without values: an error's text may name a person. Raises nothing, whatever the error is."""
    try:
        chain = islice(_chain(error), _CAUSES)
        parts = ["".join(traceback.format_tb(each.__traceback__, -_FRAMES)) + class_name(each) for each in chain]
    except BaseException as fault:  # noqa: BLE001 - an error's class may override its traceback and its cause
        return f"{class_name(error)} (its traceback cannot be read: {class_name(fault)})"
    return "\n".join(reversed(parts))


def about(error: BaseException | None) -> Any:
    """A foreign `error` for a line's `exc_info`: without its traceback, which its class may override."""
    return None if error is None else (type(error), error, None)


class _OfKafka(logging.Filter):
    """Drops the Kafka client's lines, unless its level is set by name: our own lines report the causes."""

    def __init__(self, levels: Mapping[str, str]) -> None:
        super().__init__()
        self._levels = {name: level for name, level in levels.items() if name.partition(".")[0] == _KAFKA}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] != _KAFKA:
            return True
        names = [name for name in self._levels if f"{record.name}.".startswith(f"{name}.")]
        wanted = self._levels[max(names, key=len)] if names else "CRITICAL"
        return record.levelno >= logging.getLevelNamesMapping()[wanted]


class _Context(logging.Filter):
    """Adds the task, the trace and the error's class to every line."""

    def filter(self, record: logging.LogRecord) -> bool:
        task, trace = TASK.get(), TRACE.get()
        if task is not None and not hasattr(record, "task_id"):
            record.task_id = str(task)
        if trace:
            record.trace_id = tracing.trace_id(trace)
            if tracing.on and tracing.sampled(trace):
                record.span_id = trace[36:52]
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            record.error_class = class_name(error)
            if not (trace or hasattr(record, "task_id") or hasattr(record, "task_ids")):
                # It is not about a task: the place is enough.
                record.raised_at, record.exc_info, record.exc_text = " < ".join(_places(error)), None, None
        return True


class _Text(logging.Formatter):
    """One readable line: the message, then its fields."""

    def __init__(self, coloured: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        head, *rest = super().format(record).split("\n", 1)
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        beside = "".join(f" {name}={value}" for name, value in extra.items())
        if self._coloured:
            colour = _COLOURS.get(record.levelname)
            head, beside = (f"\x1b[{colour}m{head}\x1b[0m" if colour else head), f"\x1b[2m{beside}\x1b[0m"
        return "\n".join([head + beside, *rest])

    def formatException(
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return frames(ei[1]) if ei[1] is not None else ""


_STANDARD = {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName"}


class _Json(JsonFormatter):
    """One object a line."""

    def formatException(
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return frames(ei[1]) if ei[1] is not None else ""


def colour_wanted(environment: Mapping[str, str]) -> bool | None:
    """What NO_COLOR, FORCE_COLOR and TERM say, in this order; None: colour is for terminals alone.

    https://no-color.org, https://force-color.org: a variable that is empty counts as unset.
    """
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return False if environment.get("TERM") == "dumb" else None


def coloured(stream: TextIO) -> bool:
    """Whether what is written to `stream` has colours."""
    wanted = colour_wanted(os.environ)
    return stream.isatty() if wanted is None else wanted


def _formatter(settings: LogSettings, process: str) -> logging.Formatter:
    if settings.format == "text" or (settings.format is None and sys.stderr.isatty()):
        return _Text(coloured(sys.stderr))
    return _Json(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger"},
        static_fields={"handler": process},
        timestamp="time",
    )


def _catch_other_errors() -> None:
    """Log what Python itself would write to standard error."""

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            log.critical("the process fails", exc_info=about(error))

    def in_a_thread(args: threading.ExceptHookArgs) -> None:
        log.error("a thread failed", exc_info=about(args.exc_value))

    def unraisable(args: Any) -> None:
        log.error("an error could not be raised", exc_info=about(args.exc_value))

    def warned(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        log.warning("%s at %s:%s", category.__name__, filename, lineno)

    sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, in_a_thread, unraisable
    warnings.showwarning = warned


def left_over(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Log an error that no code awaited, like our own: asyncio's lines quote errors. A loop's exception handler."""
    error = context.get("exception")
    log.error(
        "an error that no code awaited",
        exc_info=about(error),
        extra={"said": str(context.get("message", "")).partition("\n")[0][:100]} if error is None else {},
    )


def _places(error: BaseException) -> list[str]:
    """Where it was raised, and the callers, innermost first."""
    try:
        summary = reversed(traceback.extract_tb(_innermost(error).__traceback__))
    except BaseException as fault:  # noqa: BLE001 - as in `frames`
        return [f"(cannot be read: {class_name(fault)})"]
    return [f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in summary][:_PLACES]


def _innermost(error: BaseException) -> BaseException:
    """The first error of a group, or the error itself."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
