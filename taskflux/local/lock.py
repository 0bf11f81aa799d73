"""One `taskflux dev` for a data directory."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from taskflux.local.trouble import Trouble, from_os_error


@contextmanager
def locked(data_dir: Path) -> Iterator[TextIO]:
    """Hold the directory (made if missing); what is written to the file is told to whoever is refused.

    The lock goes with the process, however that ends.

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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
