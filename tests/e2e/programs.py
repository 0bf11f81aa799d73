"""The programs of a cluster, built from their Go modules into a cache outside the repository."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from taskflux.local.console import Trouble
from tests.chart import tools
from tests.chart.tools import Missing

E2E: Final = Path(__file__).parent
KWOK: Final = E2E / "kwok"
OPERATORS: Final = E2E / "operators"
METRICS: Final = E2E / "metrics"
FOLDERS: Final = (E2E, KWOK, OPERATORS, METRICS)
STAGES: Final = (
    "kustomize/stage/node/fast",
    "kustomize/stage/node/heartbeat-with-lease",
    "kustomize/stage/pod/fast",
)


class Program(NamedTuple):
    """A program, the package it is built from, and the folder whose go.mod says of which version."""

    name: str
    package: str
    folder: Path


CONTROL_PLANE: Final = (
    Program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", E2E),
    Program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", E2E),
    Program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", E2E),
    Program("etcd", "go.etcd.io/etcd/server/v3", E2E),
)
FAKE_NODES: Final = (Program("kwok", "sigs.k8s.io/kwok/cmd/kwok", KWOK),)
NODE: Final = (
    Program("kubelet", "k8s.io/kubernetes/cmd/kubelet", E2E),
    Program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", E2E),
    Program("pause", "./pause", OPERATORS),
)
PODS: Final = (
    Program("netpol", "sigs.k8s.io/kube-network-policies/cmd", OPERATORS),
    Program("coredns", "./coredns", OPERATORS),
    Program("metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server", METRICS),
    Program("keda", "github.com/kedacore/keda/v2/cmd/operator", OPERATORS),
    Program("keda-adapter", "github.com/kedacore/keda/v2/cmd/adapter", OPERATORS),
    Program("keda-admission-webhooks", "github.com/kedacore/keda/v2/cmd/webhooks", OPERATORS),
)
CLUSTER: Final = (*NODE, *CONTROL_PLANE, *PODS)
"""Of a whole cluster. The kubelet comes first: the others are built of what it is built of, for the most part."""
WITHOUT_KUBELETS: Final = (*CONTROL_PLANE, *FAKE_NODES)


def built(programs: Sequence[Program] = WITHOUT_KUBELETS) -> Path:
    """The directory with these programs and, with kwok, `stages/`: what it does with nodes and pods.

    Raises:
        Missing: something is not built yet; the text says how it is.
    """
    directory = _directory()
    if missing := _missing(directory, programs):
        command = "python -m tests.e2e.apiserver" if set(missing) <= set(WITHOUT_KUBELETS) else "make cluster"
        raise Missing(f"{', '.join(each.name for each in missing)} not built: run {command}")
    return directory


def build(say: Callable[[str], None], *, seconds: float, programs: Sequence[Program] = WITHOUT_KUBELETS) -> Path:
    """Build what is not built yet, and tell `say` what is being done and how long it took.

    What was finished before an interruption stays, as does Go's own cache of what was compiled.

    Raises:
        Missing: there is no Go, a module cannot be fetched, or `seconds` do not suffice; the text says which.
        Trouble: a program does not compile.
    """
    deadline = time.monotonic() + seconds
    directory = _directory()
    if not _missing(directory, programs):
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory / ".lock"):
        for folder in FOLDERS:
            missing = [each for each in _missing(directory, programs) if each.folder == folder]
            if not missing:
                continue
            started = time.monotonic()
            _fetch(missing, deadline)
            say(f"{_modules(folder)}: fetched in {time.monotonic() - started:.0f} s")
            started = time.monotonic()
            _compile(missing, directory, deadline)
            say(f"{', '.join(each.name for each in missing)}: built in {time.monotonic() - started:.0f} s")
            if folder == KWOK:
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
    for folder in FOLDERS:
        for file in sorted([folder / "go.mod", folder / "go.sum", *folder.glob("*/*.go")]):
            digest.update(file.read_bytes())
    for program in (*CLUSTER, *FAKE_NODES):
        digest.update("\0".join([program.name, program.package, *_flags(program.folder)]).encode())
    return tools.CACHE / "cluster" / f"{kubernetes_version()}-{digest.hexdigest()[:16]}"


def _missing(directory: Path, programs: Sequence[Program]) -> Sequence[Program]:
    return [each for each in programs if not (directory / each.name).exists()]


def _modules(folder: Path) -> str:
    return f"the modules of {(folder / 'go.mod').relative_to(E2E.parent)}"


def _fetch(programs: Sequence[Program], deadline: float) -> None:
    """Fetch their modules first: its failure is the network's, a later failed build is one of the pinned versions."""
    folder = programs[0].folder
    try:
        _go("list", "-deps", *(each.package for each in programs), folder=folder, deadline=deadline)
    except Missing:
        raise
    except Trouble as trouble:
        if "checksum mismatch" in str(trouble) or "SECURITY ERROR" in str(trouble):
            raise
        raise Missing(f"{_modules(folder)} cannot be fetched: {trouble}") from trouble


def _compile(programs: Sequence[Program], directory: Path, deadline: float) -> None:
    """All programs of a folder by one `go build`: each package that they share is compiled once."""
    folder = programs[0].folder
    unfinished = directory / f".{folder.name}.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    packages = [each.package for each in programs]
    _go("build", *_flags(folder), "-o", f"{unfinished}/", *packages, folder=folder, deadline=deadline)
    for program in programs:
        (unfinished / _called(program.package)).rename(directory / program.name)
    unfinished.rmdir()


def _called(package: str) -> str:
    """The name that `go build` gives to a program: its package's last part that is not a major version."""
    return next(part for part in reversed(package.split("/")) if not re.fullmatch(r"v\d+", part))


def _flags(folder: Path) -> list[str]:
    """As Kubernetes' own builds do it: without what only a debugger reads, and with a version to tell."""
    version = kubernetes_version()
    major, minor = version.removeprefix("v").split(".")[:2]
    stamps = [
        f"-X k8s.io/component-base/version.gitVersion={version}",
        f"-X k8s.io/client-go/pkg/version.gitVersion={version}",
        f"-X k8s.io/component-base/version.gitMajor={major}",
        f"-X k8s.io/component-base/version.gitMinor={minor}",
    ]
    return ["-trimpath", "-ldflags", " ".join(["-s", "-w", *(stamps if folder == E2E else ())])]


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
