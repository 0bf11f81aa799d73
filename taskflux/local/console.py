"""What `taskflux dev` says on the terminal: few lines, one for each thing that a person wants to know."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


class Console:
    """Writes lines; colours only on a terminal, and not where NO_COLOR is set. A closed terminal stops nothing."""

    def __init__(self, output: TextIO | None = None) -> None:
        self._output = output or sys.stdout
        self._colour = self._output.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def line(self, text: str = "") -> None:
        """A line as it is."""
        with contextlib.suppress(OSError, ValueError):  # the terminal went away: the log files have it all
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
