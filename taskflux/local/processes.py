"""Child processes that a terminal's Ctrl-C does not hit and that do not outlive us; and whom they run as.

On Linux a child is told by the kernel when the thread that started it has ended (`PR_SET_PDEATHSIG`, prctl(2)), so
start children from the main thread only. Elsewhere, and for what slips through, the next start ends what the run
before it noted in its data directory.

`taskflux run --reload` is used in a pod too, so what only the embedded stack brings is imported where it is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from taskflux.local.console import Trouble, from_log, from_os_error

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Identity:
    """A user of this machine."""

    name: str
    uid: int
    gid: int


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
        """`user` is whom to run as; `death_signal` is what the child gets when we have ended."""
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
    """What a child does before it begins, so that it gets `number` when `parent` ends; None where no kernel does."""
    if _LIBC is None:
        return None
    libc = _LIBC

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before the kernel was told
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


@contextmanager
def locked(data_dir: Path) -> Iterator[TextIO]:
    """Lock the directory (made if missing); whoever is refused reads what was written to the file.

    The lock ends with the process, however that ends.

    Raises:
        Trouble: another process holds it, or it cannot be made.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # mails and passwords stand in it
        (data_dir / ".gitignore").write_text("*\n")
        file = (data_dir / "lock").open("a+")
    except OSError as error:
        raise from_os_error(error, f"opening {data_dir / 'lock'}") from error
    with file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip()
            raise Trouble(
                f"another taskflux dev runs on {data_dir}{f' ({holder})' if holder else ''}:"
                " stop it first, or choose another --data-dir"
            ) from None
        except OSError as error:
            raise from_os_error(error, f"locking {data_dir / 'lock'}") from error
        file.truncate(0)
        yield file


def _lock(file: TextIO) -> None:
    """Take the lock. A command that looks whether it is free (`holder_of`) has it for a moment."""
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.02)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def holder_of(data_dir: Path) -> int | None:
    """The process id of the `taskflux dev` that holds the directory; None: nobody does.

    Raises:
        OSError: its lock cannot be read.
    """
    try:
        with (data_dir / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                _, _, number = file.read(200).strip().rpartition(" ")
                return int(number) if number.isdigit() else 0
    except FileNotFoundError:
        pass
    return None


def identity_for(cluster: Path) -> Identity | None:
    """Whom the PostgreSQL of `cluster` has to run as, which refuses to run as root; None when we are not root.

    An existing cluster's owner, else `postgres` where the machine has such a user, else `nobody`: no user is made.

    Raises:
        Trouble: we are root, and there is no such user.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat().st_uid) != 0:
        try:
            return _identity(pwd.getpwuid(owner))
        except KeyError:
            raise Trouble(
                f"{cluster} belongs to user id {owner}, which has no name here, and PostgreSQL does not run as root:"
                f" give it to a user (chown -R postgres {cluster}), or run taskflux dev as that user"
            ) from None
    for name in ("postgres", "nobody"):
        try:
            return _identity(pwd.getpwnam(name))
        except KeyError:
            continue
    raise Trouble(
        "PostgreSQL does not run as root, and there is no user postgres or nobody to run it as:"
        " run taskflux dev as an ordinary user"
    )


def make_reachable(path: Path, identity: Identity) -> list[Path]:
    """Let `identity` pass through every directory above `path`; answers those that had to be opened (o+x, no more).

    Raises:
        Trouble: one cannot be opened.
    """
    opened: list[Path] = []
    for directory in path.resolve().parents:
        status = directory.stat()
        if status.st_mode & stat.S_IXOTH or status.st_uid == identity.uid:
            continue
        try:
            directory.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)
        except OSError as error:
            raise Trouble(
                f"PostgreSQL runs as {identity.name}, who cannot pass through {directory}:"
                " run taskflux dev as an ordinary user, or from a directory that everybody can reach"
            ) from error
        opened.append(directory)
    return opened


def make_readable(install: Path) -> None:
    """Let everybody read and run PostgreSQL's own files, which a strict umask at installation may have closed."""
    probe = stat.S_IROTH | stat.S_IXOTH
    if all(path.stat().st_mode & probe == probe for path in (install, install / "bin", install / "bin" / "postgres")):
        return
    for path in (install, *install.rglob("*")):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _identity(entry: pwd.struct_passwd) -> Identity:
    return Identity(entry.pw_name, entry.pw_uid, entry.pw_gid)


class Notes:
    """The children of this run, in a file: name → (pid, when it began), enough to know them again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._children: dict[str, tuple[int, float]] = {}

    def add(self, name: str, pid: int) -> None:
        """Note a child that was just started."""
        if (began := _began(pid)) is not None:
            self._children[name] = (pid, began)
        self._write()

    def remove(self, name: str) -> None:
        """Forget a child that has ended."""
        if self._children.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # a safety net only: a full disk must not end what runs
            write_whole(self._file, json.dumps(self._children))


def write_whole(file: Path, text: str) -> None:
    """Write a file for its owner alone; who reads it meanwhile gets it as it was before."""
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    part.write_text(text)
    part.replace(file)


async def end_noted(file: Path) -> list[str]:
    """End what stands in a former run's notes and still runs; answers the names."""
    alive = {name: pid for name, (pid, began) in _noted(file).items() if _began(pid) == began}
    steps = ((signal.SIGTERM, 1.0), (signal.SIGINT, 8.0), (signal.SIGKILL, 5.0))
    await asyncio.gather(*(end_process(pid, *steps) for pid in alive.values()))
    return sorted(alive)


async def end_process(pid: int, *steps: tuple[signal.Signals, float]) -> bool:
    """Send each step's signal to a process that need not be our child, waiting that many seconds; True: it ended."""
    began = _began(pid)
    for number, seconds in steps:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if began is None or _began(pid) != began:
                return True
            await asyncio.sleep(0.03)
    return _began(pid) != began


def _noted(file: Path) -> dict[str, tuple[int, float]]:
    """A former run's notes; a file that is missing or was cut short counts as empty."""
    try:
        return {str(name): (int(pid), float(began)) for name, (pid, began) in json.loads(file.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def looks_like(pid: int, program: str, directory: Path) -> bool:
    """True when `pid` runs `program` in `directory`, or has it on its command line."""
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or program not in process.name():
            return False
        words = process.cmdline()
        return str(directory) in words or Path(process.cwd()) == directory
    except (psutil.Error, OSError):
        return False


def _began(pid: int) -> float | None:
    """When a living process began; None when there is none (a zombie has ended)."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None
