"""Somebody who follows the tutorial: not root, without the repository, with the Python that runs the check."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NOBODY = 65534
ORDINARY = "/usr/local/bin:/usr/bin:/bin"
"""Where Pythons are that everybody may use."""


class Reader:
    """A folder of the reader's own, outside any clone, and the environment that its terminal has."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.version = ".".join(map(str, sys.version_info[:2]))
        self.user, python, self.who = _ordinary_user(self.version)
        home, scratch, tools = (
            folder.parent / name for name in ("reader's home", "reader's scratch", "reader's tools")
        )
        for own in (folder, home, scratch, tools):
            own.mkdir()
            if self.user:
                os.chown(own, NOBODY, NOBODY)
        (tools / "python3").symlink_to(python)
        ours = environment["CURL_HOME"]
        self.environment = {name: value for name, value in environment.items() if name != "XDG_RUNTIME_DIR"} | {
            "PATH": os.pathsep.join((ours, str(tools), ORDINARY, "/usr/sbin:/sbin")),
            "HOME": str(home),
            "TMPDIR": str(scratch),
            "PIP_CACHE_DIR": str(home / ".cache" / "pip"),
        }


def _ordinary_user(version: str) -> tuple[Sequence[str], str, str]:
    """Words before a command that make it an ordinary user's, a Python that this user may run, and who that is."""
    own = str(getattr(sys, "_base_executable", sys.executable))
    if os.geteuid() != 0:
        return (), own, "an ordinary user"
    if (setpriv := shutil.which("setpriv")) is None:
        return (), own, "root, since there is no setpriv to become another user with"
    user = (setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    for python in (own, shutil.which(f"python{version}", path=ORDINARY)):
        if python and _runs([*user, python, "-c", "import ensurepip, venv"]):
            return user, python, f"an ordinary user (uid {NOBODY})"
    return (), own, f"root, since no Python {version} on this machine can be run by another user"


def _runs(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0
    except OSError:
        return False
