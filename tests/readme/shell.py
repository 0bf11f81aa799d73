"""A reader's terminal: one shell that runs a page's blocks in order, and files that are saved in between."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.readme.blocks import Block, Saved
from tests.readme.trouble import Failed

SECONDS = 240.0
"""How long one block may take; the longest installs packages."""

SAID_SECONDS = 90.0
"""How long something in the background may take to say what it should, once the block has ended."""

MARK = "@@ the block ended with "


class Shell:
    """Bash in `directory`: variables, the current folder and background jobs last from one block to the next.

    `user` are words that come before bash, such as those that make it another user's.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str], user: Sequence[str] = ()) -> None:
        self._directory = directory
        self._environment = environment
        self._user = user
        self._scripts = 0
        self._printed = ""
        self._more = threading.Condition()

    def __enter__(self) -> Self:
        self._popen = subprocess.Popen(
            [*self._user, "bash", "--noprofile", "--norc"],
            cwd=self._directory,
            env=dict(self._environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        # As in a terminal, a background job is a process group of its own, and a failed command ends nothing.
        self._say("set -m -o pipefail; trap 'failed=$?' ERR")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._popen.stdin is not None
        if self._popen.poll() is None:
            self._say("kill $(jobs -p) 2>/dev/null; wait; exit 0")
            try:
                self._popen.wait(40.0)
            except subprocess.TimeoutExpired:
                os.killpg(self._popen.pid, signal.SIGKILL)
                self._popen.wait()
        self._popen.stdin.close()
        self._reader.join(5.0)

    def run(self, steps: Sequence[Block | Saved]) -> None:
        """Run a page's steps.

        Raises:
            Failed: a command failed, did not end, or did not print what it should.
        """
        for step in steps:
            start = len(self._printed)
            if isinstance(step, Saved):
                self._save(step)
            else:
                if step.first:
                    self._script(step.name, step.first, 0)
                start = len(self._printed)
                self._script(step.name, step.script, step.exits)
            if step.prints is not None:
                otherwise = f"“{_name(step)}” did not print “{step.prints}”"
                self._wait(start, re.escape(step.prints), otherwise, SAID_SECONDS)

    def text(self) -> str:
        """All that was printed."""
        with self._more:
            return self._printed

    def _script(self, name: str, script: str, exits: int) -> None:
        """Run a script in the shell itself, so that what it sets lasts, without the shell's own input."""
        self._scripts += 1
        path = Path(self._environment["TMPDIR"]) / f"block-{self._scripts}.sh"
        path.write_text(script)
        path.chmod(0o644)
        start = len(self._printed)
        self._say(f'failed=0; . "{path}" </dev/null; echo; echo "{MARK}$failed."')
        end = self._wait(start, re.escape(MARK) + r"(\d+)\.", f"“{name}” did not end")
        if int(end[1]) != exits:
            raise Failed(f"“{name}” ended with {end[1]}, not with {exits}:\n{self._tail(start)}")

    def _save(self, step: Saved) -> None:
        """Save a file in the shell's current folder, as its user."""
        self._script(f"save {step.path}", f"cat > '{step.path}' <<'END OF THE FILE'\n{step.text}END OF THE FILE\n", 0)

    def _say(self, line: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()

    def _wait(self, start: int, pattern: str, otherwise: str, seconds: float = SECONDS) -> re.Match[str]:
        """Wait until what was printed after `start` matches."""
        deadline = time.monotonic() + seconds
        with self._more:
            while (found := re.search(pattern, self._printed[start:])) is None:
                if time.monotonic() > deadline or not self._reader.is_alive():
                    raise Failed(f"{otherwise}; printed was:\n{self._tail(start)}")
                self._more.wait(0.5)
        return found

    def _tail(self, start: int) -> str:
        return "\n".join(self._printed[start:].splitlines()[-60:])

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            with self._more:
                self._printed += line
                self._more.notify_all()


def _name(step: Block | Saved) -> str:
    return step.path if isinstance(step, Saved) else step.name
