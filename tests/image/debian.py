"""Programs that Debian has: installed where we may, else named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

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
    _install(f"{name} is missing", packages)
    if (found := shutil.which(name, path=SYSTEM_PATH)) is None:
        raise Unavailable(f"apt-get install {' '.join(packages)} brought no {name}")
    return found


def install(*packages: str) -> None:
    """Have these packages, whatever programs they bring: root on Debian installs what is missing.

    Raises:
        Unavailable: as `program`.
    """
    if shutil.which("dpkg-query") is None:
        raise Unavailable(f"only Debian has these packages by these names: {' '.join(packages)}")
    asked = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    there = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    if missing := [each for each in packages if each not in there]:
        _install(f"{', '.join(missing)}: not installed", missing)


def _install(reason: str, packages: Sequence[str]) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(f"{reason}, and only root on Debian installs it here: apt-get install {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )  # fmt: skip
        if done.returncode != 0:
            raise Unavailable(f"{reason}, and {' '.join(command)} failed: {done.stderr.strip()[-300:]}")
