"""The control plane's programs, built from their Go modules into a cache outside the repository."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from taskflux.local.console import Trouble
from tests.chart import tools
from tests.chart.tools import Missing

E2E = Path(__file__).parents[1]
KWOK = E2E / "kwok"
STAGES = ("kustomize/stage/node/fast", "kustomize/stage/node/heartbeat-with-lease", "kustomize/stage/pod/fast")


class Program(NamedTuple):
    """A program, the package it is built from, and the folder whose go.mod says of which version."""

    name: str
    package: str
    folder: Path


PROGRAMS = (
    Program("etcd", "go.etcd.io/etcd/server/v3", E2E),
    Program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", E2E),
    Program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", E2E),
    Program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", E2E),
    Program("kwok", "sigs.k8s.io/kwok/cmd/kwok", KWOK),
)


def built() -> Path:
    """The directory with every program and `stages/`, what kwok does with nodes and pods.

    Raises:
        Missing: something is not built yet; the text says how it is.
    """
    directory = _directory()
    if not _complete(directory):
        raise Missing("the control plane is not built: run python -m tests.e2e.apiserver")
    return directory


def build(say: Callable[[str], None], *, seconds: float) -> Path:
    """Build what is not built yet, and tell `say` what is being done and how long it took.

    What was finished before an interruption stays, as does Go's own cache of what was compiled.

    Raises:
        Missing: there is no Go, a module cannot be fetched, or `seconds` do not suffice; the text says which.
        Trouble: a program does not compile.
    """
    deadline = time.monotonic() + seconds
    directory = _directory()
    if _complete(directory):
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory / ".lock"):
        for folder in (E2E, KWOK):
            _fetch(folder, deadline)
        say(f"the modules: fetched in {seconds - deadline + time.monotonic():.0f} s")
        for program in PROGRAMS:
            if not (directory / program.name).exists():
                started = time.monotonic()
                _compile(program, directory, deadline)
                say(f"{program.name}: built in {time.monotonic() - started:.0f} s")
        if not (directory / "stages").exists():
            _copy_stages(directory, deadline)
    return directory


def kubernetes_version() -> str:
    """The version that tests/e2e/go.mod names, `v1.34.4`."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", (E2E / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("tests/e2e/go.mod names no version of k8s.io/kubernetes")
    return found[1]


@cache
def _directory() -> Path:
    """Named after all that decides what is built."""
    digest = hashlib.sha256(_go("version", folder=E2E).encode())
    for folder in (E2E, KWOK):
        for name in ("go.mod", "go.sum"):
            digest.update((folder / name).read_bytes())
    for program in PROGRAMS:
        digest.update("\0".join([program.name, program.package, *_flags(program)]).encode())
    return tools.CACHE / "control-plane" / f"{kubernetes_version()}-{digest.hexdigest()[:16]}"


def _complete(directory: Path) -> bool:
    return all((directory / name).exists() for name in [*(program.name for program in PROGRAMS), "stages"])


def _fetch(folder: Path, deadline: float) -> None:
    """Fetch all modules first: its failure is the network's, a later failed build is one of the pinned versions."""
    try:
        _go("mod", "download", folder=folder, deadline=deadline)
    except Missing:
        raise
    except Trouble as trouble:
        if "checksum mismatch" in str(trouble) or "SECURITY ERROR" in str(trouble):
            raise
        raise Missing(f"the modules of {folder.name}/go.mod cannot be fetched: {trouble}") from trouble


def _compile(program: Program, directory: Path, deadline: float) -> None:
    unfinished = directory / f".{program.name}.new"
    _go("build", *_flags(program), "-o", str(unfinished), program.package, folder=program.folder, deadline=deadline)
    unfinished.rename(directory / program.name)


def _flags(program: Program) -> list[str]:
    """As Kubernetes' own builds do it: without what only a debugger reads, and with a version to tell."""
    version = kubernetes_version()
    major, minor = version.removeprefix("v").split(".")[:2]
    stamps = [
        f"-X k8s.io/component-base/version.gitVersion={version}",
        f"-X k8s.io/client-go/pkg/version.gitVersion={version}",
        f"-X k8s.io/component-base/version.gitMajor={major}",
        f"-X k8s.io/component-base/version.gitMinor={minor}",
    ]
    return ["-trimpath", "-ldflags", " ".join(["-s", "-w", *(stamps if program.folder == E2E else ())])]


def _copy_stages(directory: Path, deadline: float) -> None:
    """kwok's own stages, out of its module, each set in one folder."""
    module = json.loads(_go("mod", "download", "-json", "sigs.k8s.io/kwok", folder=KWOK, deadline=deadline))["Dir"]
    unfinished = directory / ".stages.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for stages in STAGES:
        for file in Path(module, stages).glob("*.yaml"):
            if file.name != "kustomization.yaml":
                (unfinished / file.name).write_bytes(file.read_bytes())
    unfinished.rename(directory / "stages")


def _go(*arguments: str, folder: Path, deadline: float = math.inf) -> str:
    """What `go` answers, run in `folder`; a child in our process group, so that it ends with us."""
    child = subprocess.Popen(
        [tools.go(), *arguments],
        cwd=folder,
        env=tools.go_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, said = child.communicate(timeout=None if deadline == math.inf else max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # it ends its compilers, too
        child.communicate()
        raise Missing("the time for building is over; what is compiled so far is kept for the next run") from None
    if child.returncode != 0:
        raise Trouble(f"go {arguments[0]} failed:\n{said.strip() or 'it said nothing'}")
    return out


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One builder at a time: two of them would compile the same things side by side."""
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
