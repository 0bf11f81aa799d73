"""Free ports on the loopback: the usual one where it is free, the same one again after a restart."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import weakref
from pathlib import Path

from taskflux.local.console import from_os_error

LOOPBACK = "127.0.0.1"
LOOPBACK_NAME = "localhost"
PEERS = "TASKFLUX_DEV_PEERS"
"""The environment variable that names the file with the other processes for ingest: name → URL of its /metrics."""
INBOX = "TASKFLUX_DEV_INBOX"
"""The environment variable that tells ingest the inbox's address; unset where there is none."""


def is_free(port: int) -> bool:
    """True when a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        # As servers do: a connection that only lingers in TIME_WAIT is not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            return False
        return True


def free_port() -> int:
    """Some free port of 127.0.0.1, chosen by the system, which gives it to nobody else for about a minute.

    A connection that its own side closed first stays in TIME_WAIT: until that is over the system gives the port to
    nobody who asks for any, in this process or another, while a server that asks for this very one gets it. A port that
    was only bound is given away again within a few hundred calls.
    """
    with socket.socket() as probe:
        # So that what it leaves behind is not in a server's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, 0))
        probe.listen(1)
        port: int = probe.getsockname()[1]
        with socket.create_connection((LOOPBACK, port)):
            accepted, _ = probe.accept()
            accepted.close()
        return port


def reserve(port: int) -> int | None:
    """A descriptor that keeps a port from all others of this user who ask here; None: somebody else has it.

    Between the choice of a port and the start of the server that listens there, others find it free. The reservation
    ends when the descriptor is closed, with the process at the latest. Where there is no place for it that is ours
    alone, it keeps nobody away.
    """
    directory = Path(tempfile.gettempdir(), f"taskflux-ports-{os.geteuid()}")
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        ours = directory.lstat().st_uid == os.geteuid()
        at = directory / str(port) if ours else os.devnull
        descriptor = os.open(at, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        ours, descriptor = False, os.open(os.devnull, os.O_RDWR)
    try:
        if ours:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class Ports:
    """The ports of one data directory, remembered in a file so that addresses stay over restarts.

    Those that it gives away are reserved (`reserve`) until it is collected.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._taken: set[int] = set()
        self._remembered = _read(file)

    def choose(self, name: str, *usual: int) -> int:
        """The port for `name`: the remembered one, the usual ones, the next ones above, else any free one."""
        return self.first(name, *self.remembered(name), *usual, *range(usual[0] + 1, usual[0] + 20))

    def remembered(self, name: str) -> tuple[int, ...]:
        """The port that `name` had before, if it had one."""
        return (self._remembered[name],) if name in self._remembered else ()

    def first(self, name: str, *wanted: int) -> int:
        """The first of `wanted` that is free and not given away, else any free one."""
        for port in wanted:
            if port and self._take(name, port):
                return port
        while not self._take(name, port := free_port()):
            pass
        return port

    def save(self) -> None:
        """Write the file.

        Raises:
            Trouble: it cannot be written.
        """
        try:
            self._file.write_text(json.dumps(self._remembered, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            raise from_os_error(error, f"writing {self._file}") from error

    def _take(self, name: str, port: int) -> bool:
        """Give it away, if it is free."""
        if port in self._taken or (reservation := reserve(port)) is None:
            return False
        if not is_free(port):
            os.close(reservation)
            return False
        weakref.finalize(self, os.close, reservation)
        self._taken.add(port)
        self._remembered[name] = port
        return True


def _read(file: Path) -> dict[str, int]:
    """What was remembered; a file that is missing or was cut short by a crash counts as empty."""
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(name): port for name, port in content.items() if isinstance(port, int) and 0 < port < 65536}
