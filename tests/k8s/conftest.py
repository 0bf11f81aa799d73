"""What these tests need beside Python: kubectl and helm, and Go for other projects' programs that read our files.

`python -m tests.k8s` gets all of them and fails where they cannot be had. A run without them skips, and says why.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chart import crds, tools
from tests.chart.crds import Module
from tests.chart.tools import Missing
from tests.k8s import gotools

Program = Callable[[], Path]
Modules = Callable[[Module], Path]


@pytest.fixture(scope="session", autouse=True)
def _helm_and_kubectl() -> None:
    _or_skip(tools.helm)
    _or_skip(tools.kubectl)


@pytest.fixture(scope="session")
def definitions() -> None:
    """KEDA's and the Prometheus operator's, for strict validation."""
    try:
        crds.schemas()
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def actionlint() -> Path:
    return _or_skip(gotools.actionlint)


@pytest.fixture(scope="session")
def compose() -> Path:
    return _or_skip(gotools.compose)


@pytest.fixture(scope="session")
def kind() -> Path:
    return _or_skip(gotools.kind)


@pytest.fixture(scope="session")
def module() -> Modules:
    """Where a Go module's files are; the test is skipped where they cannot be had."""
    return lambda wanted: _or_skip(lambda: crds.directory(wanted))


def _or_skip(get: Program) -> Path:
    try:
        return get()
    except Missing as missing:
        pytest.skip(str(missing))
