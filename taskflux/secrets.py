"""Secrets that are files, whose contents may be renewed while a process runs: so Kubernetes mounts them.

A file is called like the variable that it sets: `TASKFLUX_KAFKA__SASL_PASSWORD`, in the folder that
`TASKFLUX_SECRETS_DIR` names, or in a folder in it. A variable that the environment sets itself takes precedence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DIRECTORY: Final = "TASKFLUX_SECRETS_DIR"
_PREFIX: Final = "TASKFLUX_"
_from_files: Final[set[str]] = set()
"""The variables that files have set."""


class Unreadable(Exception):
    """The folder or a file in it cannot be read; the text says which and why."""


def read() -> Mapping[str, str | None]:
    """Put the files' contents into the environment; what the variables that differ from before were.

    Raises:
        Unreadable: nothing has changed.
    """
    folder = os.environ.get(DIRECTORY)
    if not folder:
        return {}
    found: dict[str, str] = {}
    try:
        os.scandir(folder).close()  # which says so if it is missing
        # Kubernetes keeps the versions of a volume in hidden folders, and deletes the former one at any moment.
        for path in sorted([*Path(folder).glob(f"{_PREFIX}*"), *Path(folder).glob(f"[!.]*/{_PREFIX}*")]):
            if path.is_file() and (path.name in _from_files or not os.environ.get(path.name)):
                found[path.name] = path.read_text("utf-8")
                if "\0" in found[path.name]:
                    raise Unreadable(f"{DIRECTORY}: {path} has a NUL, which no variable can hold")
    except OSError as error:
        raise Unreadable(f"{DIRECTORY}: {error.filename} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unreadable(f"{DIRECTORY}: a file in {folder} is not UTF-8") from None
    changed = {name: os.environ.get(name) for name, text in found.items() if os.environ.get(name) != text}
    os.environ.update(found)
    _from_files.update(found)
    return changed


def undo(changed: Mapping[str, str | None]) -> None:
    """Put back what `read` has changed."""
    for name, text in changed.items():
        if text is None:
            del os.environ[name]
        else:
            os.environ[name] = text
