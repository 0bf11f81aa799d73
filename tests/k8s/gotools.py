"""The programs and schemas of other projects that read our files: Go modules, pinned by the sum over their files."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from tests.chart import crds, tools
from tests.chart.crds import Module
from tests.chart.tools import Missing

ACTIONLINT: Final = Module("github.com/rhysd/actionlint", "v1.7.12", "h1:vQ4GeJN86C0QH+gTUQcs8McmK62OLT3kmakPMtEWYnY=")
COMPOSE: Final = Module(
    "github.com/compose-spec/compose-go/v2", "v2.16.2", "h1:pTp1DqQwJzFd85GzlWsSszKA1ABrV/ySqsClujIcWA8="
)
KIND: Final = Module("sigs.k8s.io/kind", "v0.33.0", "h1:AjvDv3vOygb/VKLVQW87lfktIBzkxR8Ump9DjxC8+Lk=")
KUBE_SCORE: Final = Module("github.com/zegl/kube-score", "v1.20.0", "h1:J1VqK86SunV4Gg8emPTmwUVxe0rmXnAs5K9ZUbGMKR8=")
MAILPIT: Final = Module("github.com/axllent/mailpit", "v1.30.5", "h1:kHsdTXPogfMQcVvec40fefiveD9VQkg4x2HU8RcQnts=")
SKAFFOLD: Final = Module(
    "github.com/GoogleContainerTools/skaffold/v2", "v2.24.0", "h1:uiikCgWnOT2lcB8ZWWtIZBXfySnpKKzGwBiZyNs0aWE="
)

BUILD_TIMEOUT: Final = 600.0


def actionlint() -> Path:
    """The linter of GitHub's workflows.

    Raises:
        Missing: it cannot be built here; the text says why.
    """
    return _built(ACTIONLINT, "cmd/actionlint")


def compose() -> Path:
    """The loader of `docker compose` as a program: it prints what a file comes to, or what is wrong with it.

    Raises:
        Missing: as `actionlint`.
    """
    return _built(COMPOSE, "cmd")


def kind() -> Path:
    """kind itself.

    Raises:
        Missing: as `actionlint`.
    """
    return _built(KIND, "")


def mailpit() -> Path:
    """The SMTP server that keeps what it takes.

    Raises:
        Missing: as `actionlint`.
    """
    return _built(MAILPIT, "")


def kube_score() -> Path:
    """The linter of Kubernetes objects.

    Raises:
        Missing: as `actionlint`.
    """
    return _built(KUBE_SCORE, "cmd/kube-score")


@cache
def _built(module: Module, package: str) -> Path:
    """A program of a module, built once into the cache."""
    crds.directory(module)  # fetched, and what is pinned
    place = tools.CACHE / "tools" / f"{module.path.replace('/', '-')}-{module.version}"
    program = place / (Path(package).name or Path(module.path).name)
    if program.exists():
        return program
    place.parent.mkdir(parents=True, exist_ok=True)
    name = f"{'/'.join(filter(None, (module.path, package)))}@{module.version}"
    with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as scratch:
        try:
            done = subprocess.run(
                [tools.go(), "install", "-trimpath", name],
                cwd=scratch,  # outside of any module
                env={**tools.go_environment(), "GOBIN": scratch},
                capture_output=True,
                text=True,
                timeout=BUILD_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Missing(f"{name} was not built within {BUILD_TIMEOUT:.0f} s") from None
        if done.returncode != 0:
            raise Missing(f"{name} could not be built: {done.stderr.strip() or 'go said nothing'}")
        place.mkdir(exist_ok=True)
        (Path(scratch) / program.name).replace(program)
    return program
