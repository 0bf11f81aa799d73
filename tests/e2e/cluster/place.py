"""On which cluster the tests run: one that `make cluster` made here, one that they make with kind, or another one.

By environment:

  CLUSTER_E2E     where `make cluster` keeps its things; /var/lib/taskflux-cluster unless told otherwise
  KUBECONFIG_E2E  kubeconfig of an existing cluster, which is left as it was but for what the tests install
  IMAGE_E2E       TaskFlux's image, where that cluster can pull it
  INGRESS_E2E     URL of that cluster's ingress controller, such as http://10.0.0.7
  CLASS_E2E       class of its Ingresses; traefik unless told otherwise
  KEEP_E2E        1: the kind cluster and what was installed stay when the tests are over
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chart.tools import Missing
from tests.e2e.cluster.machine.place import Place

IMAGE: Final = "taskflux:e2e"
DOCKER_TIMEOUT: Final = 30.0


@dataclass(frozen=True)
class Kind:
    """A cluster of our own in Docker, made for the tests and deleted after them."""

    keep: bool = False


@dataclass(frozen=True)
class Existing:
    """An existing cluster."""

    kubeconfig: Path
    image: str
    ingress: str
    ingress_class: str
    keep: bool = False


@dataclass(frozen=True)
class OfThisMachine:
    """What `make cluster` made, and TaskFlux in it. It stays."""

    kubeconfig: Path
    image: str


Where = Kind | Existing | OfThisMachine


def place(
    environment: Mapping[str, str],
    docker_works: Callable[[], bool],
    machine: Callable[[], OfThisMachine | None] = lambda: None,
) -> Where:
    """Where to run.

    Raises: Missing: nowhere, or the existing cluster is not fully described; the text says what to do.
    """
    keep = environment.get("KEEP_E2E") == "1"
    kubeconfig = environment.get("KUBECONFIG_E2E")
    if kubeconfig is None:
        if (of_this_machine := machine()) is not None:
            return of_this_machine
        if docker_works():
            return Kind(keep)
        raise Missing(
            "Docker does not run here, KUBECONFIG_E2E names no cluster that is there, and `make cluster` made none"
        )
    if not Path(kubeconfig).is_file():
        raise Missing(f"KUBECONFIG_E2E names {kubeconfig}, which is no file")
    unsaid = [name for name in ("IMAGE_E2E", "INGRESS_E2E") if not environment.get(name)]
    if unsaid:
        raise Missing(
            f"KUBECONFIG_E2E names a cluster; {' and '.join(unsaid)} should say more (tests/e2e/cluster/place.py)"
        )
    ingress_class = environment.get("CLASS_E2E", "traefik")
    return Existing(Path(kubeconfig), environment["IMAGE_E2E"], environment["INGRESS_E2E"], ingress_class, keep)


def docker_works() -> bool:
    """Whether there is a Docker with its engine."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    try:
        done = subprocess.run([docker, "version"], capture_output=True, timeout=DOCKER_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def of_this_machine() -> OfThisMachine | None:
    """What `make cluster` made, if it is up."""
    made = Place()
    if not made.is_up():
        return None
    noted = made.directory / "taskflux.name"
    return OfThisMachine(made.directory / "credentials" / "admin.kubeconfig", noted.read_text())
