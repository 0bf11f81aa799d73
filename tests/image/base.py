"""The base of the image under test: the official one, or where no registry is reached a stand-in made from Debian."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.image.cpython import CPython, find_cpython
from tests.image.debian import program
from tests.image.unavailable import Unavailable

OFFICIAL = "docker.io/library/python:3.12-slim"
REPOSITORY = "localhost/taskflux-base"
PULL_TIMEOUT = 180.0
BOOTSTRAP_TIMEOUT = 600.0
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
EVERY_BASE = ("ca-certificates", "netbase", "tzdata")
DEBIANS_PYTHON = ("python3", "python3-pip", "python3-venv")


@dataclass(frozen=True, slots=True)
class Base:
    """An image that the engine has, and what it is, in words."""

    image: str
    what: str


def find_base(engine: str) -> Base:
    """The base to build on: $TASKFLUX_TEST_BASE, the official one, else a stand-in, which is made once and kept.

    Raises:
        Unavailable: no registry is reached, and here no stand-in can be made.
    """
    if chosen := os.environ.get("TASKFLUX_TEST_BASE"):
        return Base(chosen, f"{chosen}, as TASKFLUX_TEST_BASE says")
    refusal = _pull(engine)
    if refusal is None:
        return Base(OFFICIAL, OFFICIAL)
    suite = _debian_suite()
    if os.geteuid() != 0 or suite is None:
        raise Unavailable(
            f"{OFFICIAL} cannot be pulled ({refusal}), and only root on Debian makes a stand-in:"
            " name an image with TASKFLUX_TEST_BASE"
        )
    return _stand_in(engine, suite, find_cpython())


def _pull(engine: str) -> str | None:
    """Pull the official image; why not, where it cannot be had."""
    try:
        done = subprocess.run(
            [engine, "pull", "--quiet", OFFICIAL], capture_output=True, text=True, timeout=PULL_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PULL_TIMEOUT:.0f} s"
    return None if done.returncode == 0 else "no registry is reached: " + done.stderr.strip().rpartition(": ")[2]


def _stand_in(engine: str, suite: str, cpython: CPython | None) -> Base:
    python = f"CPython {cpython.version} under /usr/local" if cpython else "its own Python"
    what = f"a stand-in for {OFFICIAL}: Debian {suite} with {python}"
    packages = sorted({*EVERY_BASE, *(cpython.packages() if cpython else DEBIANS_PYTHON)})
    recipe = "\n".join([what, platform.machine(), *packages, *(_source(name) for name in ("base", "cpython"))])
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    image = f"{REPOSITORY}:{key}"
    if subprocess.run([engine, "image", "inspect", image], capture_output=True, check=False).returncode == 0:
        return Base(image, what)
    archive = _cache() / f"{key}.tar"
    if not archive.exists():
        _bootstrap(suite, packages, cpython, archive)
    settings = ["ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "ENV LANG=C.UTF-8"]
    changes = [part for setting in [*settings, 'CMD ["python3"]'] for part in ("--change", setting)]
    subprocess.run([engine, "import", *changes, archive, image], check=True, capture_output=True, timeout=300)
    return Base(image, what)


def _bootstrap(suite: str, packages: list[str], cpython: CPython | None, archive: Path) -> None:
    debootstrap = program("debootstrap", "debootstrap")
    archive.parent.mkdir(parents=True, exist_ok=True)
    # Beside its cache rather than in /tmp, which may be small, or be mounted without devices.
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix="root-") as directory:
        root = Path(directory) / "root"
        command: list[str | Path] = [debootstrap, "--variant=minbase", f"--include={','.join(packages)}"]
        if KEYRING.exists():
            command.append(f"--keyring={KEYRING}")
        done = subprocess.run(
            [*command, suite, root, *_mirror(suite)],
            capture_output=True,
            text=True,
            timeout=BOOTSTRAP_TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise Unavailable(f"debootstrap {suite} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        if cpython is not None:
            cpython.copy_to(root)
        for rest in (root / "var/lib/apt/lists", root / "var/cache/apt/archives"):
            shutil.rmtree(rest)
            rest.mkdir()
        finished = archive.with_suffix(f".{os.getpid()}")
        tar: list[str | Path] = ["tar", "--numeric-owner", "--one-file-system", "-C", root, "-cf", finished, "."]
        subprocess.run(tar, check=True, timeout=300)
        finished.replace(archive)


def _mirror(suite: str) -> list[str]:
    """The mirror that this machine's apt uses for `suite`, if it names one; else debootstrap knows."""
    wanted = ["--format", "$(REPO_URI)", "Created-By: Packages", f"Release: {suite}", "Component: main"]
    said = subprocess.run(["apt-get", "indextargets", *wanted], capture_output=True, text=True, check=False).stdout
    return said.split()[:1]


def _debian_suite() -> str | None:
    """bookworm, trixie, …; None where this is no Debian."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return None
    return release.get("VERSION_CODENAME") if release.get("ID") == "debian" else None


def _source(name: str) -> str:
    return Path(__file__).with_name(f"{name}.py").read_text()


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "taskflux" / "image-base"
