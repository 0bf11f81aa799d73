"""Programs that Debian has: installed where we may, else named."""

from __future__ import annotations

import os
import shutil
import subprocess

from tests.image.unavailable import Unavailable

SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
TIMEOUT = 600.0


def program(name: str, *packages: str) -> str:
    """The path of a program; where it is missing, root on Debian installs `packages` first.

    Raises:
        Unavailable: it is missing, and we may not install it, or could not.
    """
    if (found := shutil.which(name, path=SYSTEM_PATH)) is not None:
        return found
    install = f"apt-get install {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(f"{name} is missing, and only root on Debian installs it here: {install}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )  # fmt: skip
        if done.returncode != 0:
            raise Unavailable(f"{name} is missing, and {' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    if (found := shutil.which(name, path=SYSTEM_PATH)) is None:
        raise Unavailable(f"{install} brought no {name}")
    return found
