"""kube-score on what each `ci/` file renders: clean, or with a reason."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest

from tests.chart.cases import EACH_CI_FILE, full
from tests.chart.rendering import Rendering, load_values, render
from tests.chart.tools import Missing
from tests.k8s import gotools

pytestmark = pytest.mark.timeout(900)  # where it is built first

EXCEPTIONS: Final[Mapping[str, str]] = {
    "container-ephemeral-storage-request-and-limit": "nothing is written: the root is read-only, /tmp is in memory",
    "container-image-pull-policy": "a tag of a release, or a digest, does not change",
    "deployment-has-host-podantiaffinity": "topologySpreadConstraints spread the pods, and keep none from running",
    "deployment-replicas": "KEDA scales them, which kube-score does not know; one pod that is idle is wanted",
}
"""Checks that are not applied, and why."""
OPTIONAL: Final = ("container-ports-check", "container-seccomp-profile")
OPTIONS: Final = (
    # A limit of CPU throttles a handler while the node is idle.
    "--ignore-container-cpu-limit",
    *(word for check in EXCEPTIONS for word in ("--ignore-test", check)),
    *(word for check in OPTIONAL for word in ("--enable-optional-test", check)),
)
WITHOUT_POLICIES: Final = "pod-networkpolicy"
"""The check that a release with `networkPolicy.enabled=false` cannot pass."""

Documents = list[dict[str, Any]]


@pytest.fixture(scope="module")
def kube_score() -> Path:
    try:
        return gotools.kube_score()
    except Missing as missing:
        pytest.skip(str(missing))


def faults(kube_score: Path, documents: Documents, *options: str) -> Iterator[tuple[str, str]]:
    """(check, what it says of which object) of all that it does not find good."""
    done = subprocess.run(
        [kube_score, "score", "--output-format", "json", *options, "-"],
        input="\n---\n".join(map(json.dumps, documents)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    scored = json.loads(done.stdout)
    assert len(scored) >= 1
    for each in scored:
        for check in each["checks"]:
            if check["grade"] < 10 and not check["skipped"]:
                said = [comment["summary"] for comment in check["comments"] or []]
                yield check["check"]["id"], f"{each['object_name']}: {', '.join(said)}"


def documents(rendering: Rendering) -> Documents:
    return deepcopy([dict(each.document) for each in rendering.objects])


@EACH_CI_FILE
def test_kube_score_finds_nothing_wrong(kube_score: Path, ci: Path) -> None:
    found = dict(faults(kube_score, documents(render(ci)), *OPTIONS))
    if not load_values(ci).get("networkPolicy", {}).get("enabled", True):
        assert found.pop(WITHOUT_POLICIES)
    assert not found


def test_kube_score_finds_nothing_wrong_with_everything_on(kube_score: Path) -> None:
    assert not dict(faults(kube_score, documents(full()), *OPTIONS))


def test_each_exception_is_one_that_is_needed(kube_score: Path) -> None:
    found = {check for check, _ in faults(kube_score, documents(full()))}
    assert found == {*EXCEPTIONS, "container-resources"}


Break = Callable[[dict[str, Any]], None]


def container(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"]["template"]["spec"]["containers"][0]
    return found


KNOWN_FAULTS: Final[Mapping[str, tuple[Break, str]]] = {
    "no limit of memory": (lambda d: container(d)["resources"].pop("limits"), "container-resources"),
    "a tag that moves": (lambda d: container(d).update(image="taskflux/taskflux:latest"), "container-image-tag"),
    "a root that can be written": (
        lambda d: container(d)["securityContext"].update(readOnlyRootFilesystem=False),
        "container-security-context-readonlyrootfilesystem",
    ),
    "one address for both probes": (
        lambda d: container(d).update(readinessProbe=container(d)["livenessProbe"]),
        "pod-probes-identical",
    ),
}


@pytest.mark.parametrize("fault", KNOWN_FAULTS)
def test_the_check_itself_finds(kube_score: Path, fault: str) -> None:
    spoil, said = KNOWN_FAULTS[fault]
    spoiled = documents(full())
    spoil(next(each for each in spoiled if each["kind"] == "Deployment"))
    assert {check for check, _ in faults(kube_score, spoiled, *OPTIONS)} == {said}
