"""The command of the README that keeps running, until its reader types Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.readme.blocks import Block
from tests.readme.trouble import Failed

ADDRESS = re.compile(r"[Ss]erving on http://(?:127\.0\.0\.1|localhost):(\d+)")
ADDRESS_SECONDS = 360.0  # the environment is set up in it
WORDS_SECONDS = 120.0
END_SECONDS = 30.0
# How make says that a command of its failed; it says Interrupt where Ctrl-C ended it.
MAKE_FAILED = re.compile(r"^make.*\*\*\*.*\bError \d+", re.MULTILINE)
INTERRUPTED = (0, 2, 130, -signal.SIGINT)  # make's own ways to end at Ctrl-C, when what it ran ended well


class Serving:
    """One running command, its output read as it comes."""

    def __init__(self, block: Block, directory: Path, environment: Mapping[str, str]) -> None:
        self._block = block
        self._directory = directory
        self._environment = environment
        self._printed: list[str] = []
        self._more = threading.Condition(threading.RLock())

    def __enter__(self) -> Self:
        self._popen = subprocess.Popen(
            ["bash", "-c", f"exec {self._block.script}"],
            cwd=self._directory,
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a process group of its own, which gets the Ctrl-C as from a terminal
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._popen.poll() is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def wait_for_address(self, port: int) -> None:
        """Wait until it prints the address it serves on, which has to be the one that the commands name."""
        self._wait(lambda text: ADDRESS.search(text) is not None, "print its address", ADDRESS_SECONDS)
        ports = {int(found) for found in ADDRESS.findall(self.text())}
        if port not in ports:
            raise Failed(f"it serves on {sorted(ports)}, but the README's commands speak to {port}:\n{self.tail()}")

    def wait_for(self, words: str) -> None:
        """Wait until it printed these words."""
        self._wait(lambda text: words in text, f"print “{words}”", WORDS_SECONDS)

    def interrupt(self) -> None:
        """Ctrl-C: it has to end in good order, soon."""
        os.killpg(self._popen.pid, signal.SIGINT)
        try:
            code = self._popen.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"it did not end within {END_SECONDS:.0f} s of Ctrl-C:\n{self.tail()}") from None
        self._reader.join(5.0)
        if code not in INTERRUPTED or MAKE_FAILED.search(self.text()) or "Traceback" in self.text():
            raise Failed(f"it did not end well at Ctrl-C (exit code {code}):\n{self.tail()}")

    def text(self) -> str:
        """All it printed."""
        with self._more:
            return "".join(self._printed)

    def tail(self, lines: int = 40) -> str:
        """The end of what it printed."""
        return "\n".join(self.text().splitlines()[-lines:])

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            with self._more:
                self._printed.append(line)
                self._more.notify_all()

    def _wait(self, holds: Callable[[str], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._more:
            while not holds("".join(self._printed)):
                if self._popen.poll() is not None and not self._reader.is_alive():
                    raise Failed(f"“{self._block.script}” ended before it could {what}:\n{self.tail()}")
                if time.monotonic() > deadline:
                    raise Failed(f"“{self._block.script}” did not {what} within {seconds:.0f} s:\n{self.tail()}")
                self._more.wait(0.5)
