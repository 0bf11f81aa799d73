"""Child processes that a terminal's Ctrl-C does not hit and that do not outlive us.

On Linux a child is told by the kernel when the thread that started it is gone (`PR_SET_PDEATHSIG`, prctl(2)), so
start children from the main thread only. Elsewhere, and for what slips through, the next start ends what the run
before it noted (`taskflux.local.leftovers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from taskflux.local.identity import Identity
from taskflux.local.trouble import Trouble, from_log, from_os_error

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Process:
    """One child process in a session of its own, its output appended to `log`.

    It does not belong to an event loop: it can be started under one `asyncio.run` and stopped under another.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: Identity | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        """`user` is whom to run as; `death_signal` is what the child gets when we are gone."""
        self.name = name
        self.log = log
        self._argv = [str(part) for part in argv]
        self._env = None if env is None else dict(env)
        self._cwd = cwd
        self._user = user
        self._death_signal = death_signal
        self._log_from = 0
        self._popen: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Start it.

        Raises:
            Trouble: the program or its log cannot be opened.
        """
        user = self._user
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as output:
                self._log_from = output.tell()
                self._popen = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    cwd=self._cwd,
                    user=user.uid if user else None,
                    group=user.gid if user else None,
                    extra_groups=[] if user else None,
                    start_new_session=True,
                    preexec_fn=die_with_parent(self._death_signal, os.getpid()),
                )
        except OSError as error:
            raise from_os_error(error, f"starting {self.name}") from error

    @property
    def pid(self) -> int:
        """Its process id; raises RuntimeError before the first `spawn`."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """True from `spawn` until it has ended."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs or before it was started."""
        return None if self._popen is None else self._popen.poll()

    async def wait(self) -> int:
        """Wait for its end; answers the exit code, negative for a signal."""
        popen = self._started()
        while (code := popen.poll()) is None:
            await _ended(popen.pid)
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self._popen is not None:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """`kill -9` it, and reap it."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    async def stop(self, *steps: tuple[signal.Signals, float]) -> None:
        """Send each step's signal and wait that many seconds for the end; kill it after the last."""
        if self._popen is None:
            return
        for number, seconds in steps:
            if not self.running:
                return
            self.send(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wait(), seconds)
        self.kill()

    def last_words(self, limit: int = 4000) -> str:
        """The end of what stands in its log since it was started, at most `limit` bytes."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self._log_from, self.log.stat().st_size - limit))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._popen


async def run(process: Process, timeout: float) -> None:
    """Run a child to its end.

    Raises:
        Trouble: it failed, or took longer than `timeout` seconds; the text carries its last line.
    """
    process.spawn()
    try:
        code = await asyncio.wait_for(process.wait(), timeout)
    except TimeoutError:
        raise Trouble(f"{process.name} took longer than {timeout:.0f} s (see {process.log})") from None
    finally:
        process.kill()
    if code != 0:
        raise from_log(f"{process.name} failed", process.last_words(), str(process.log))


def die_with_parent(number: signal.Signals, parent: int) -> Callable[[], None] | None:
    """What a child does before it begins, so that it gets `number` when `parent` is gone; None where no kernel does."""
    if _LIBC is None:
        return None
    libc = _LIBC

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # the parent went away before the kernel was told
            os._exit(1)

    return before_exec


async def _ended(pid: int) -> None:
    """Return when our child `pid` may have ended."""
    if not hasattr(os, "pidfd_open"):
        await asyncio.sleep(0.05)
        return
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        await asyncio.sleep(0.05)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
