"""What these tests need besides Python: Prometheus with its promtool, and npm for Grafana's schema."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

import pytest

PACKAGES: Final = {"prometheus": "prometheus", "promtool": "prometheus", "node": "nodejs", "npm": "npm"}
"""Program → Debian's package."""


def program(name: str) -> str:
    """The program's path; the test is skipped where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here (on Debian: apt-get install {PACKAGES[name]})")
    return found


def missing() -> list[str]:
    """The programs that are not here."""
    return [name for name in PACKAGES if shutil.which(name) is None]


def install_missing() -> None:
    """Install what is missing, where we may: as root on Debian or one of its kin."""
    packages = sorted({PACKAGES[name] for name in missing()})
    if not packages or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    print(f"installing {' '.join(packages)}", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Debian's prometheus starts a server of its own where an init system runs: ours is another.
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        subprocess.run(["apt-get", *words], env=quiet, stdout=subprocess.DEVNULL, check=False, timeout=600)
