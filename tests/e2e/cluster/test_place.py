"""Where the tests of a cluster run, and what they say where they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chart.tools import Missing
from tests.e2e.cluster.place import Existing, Kind, place
from tests.k8s.files import ROOT


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    file = tmp_path / "config"
    file.write_text("apiVersion: v1\nkind: Config\n")
    return file


def test_a_machine_with_docker_makes_its_own_cluster() -> None:
    assert place({}, lambda: True) == Kind()
    assert place({"KEEP_E2E": "1"}, lambda: True) == Kind(keep=True)


def test_an_existing_cluster_is_used_even_where_docker_is(kubeconfig: Path) -> None:
    said = {
        "KUBECONFIG_E2E": str(kubeconfig),
        "IMAGE_E2E": "registry.example.com/taskflux:1",
        "INGRESS_E2E": "http://x",
    }
    found = Existing(kubeconfig, "registry.example.com/taskflux:1", "http://x", "traefik")
    assert place(said, lambda: True) == found
    assert place({**said, "CLASS_E2E": "haproxy"}, lambda: False) != found


def test_without_either_it_says_what_is_missing() -> None:
    with pytest.raises(Missing, match="Docker does not run here"):
        place({}, lambda: False)


def test_an_incompletely_described_cluster_is_not_changed(kubeconfig: Path) -> None:
    with pytest.raises(Missing, match="IMAGE_E2E and INGRESS_E2E"):
        place({"KUBECONFIG_E2E": str(kubeconfig)}, lambda: True)
    with pytest.raises(Missing, match="no file"):
        place({"KUBECONFIG_E2E": f"{kubeconfig}.away"}, lambda: True)


def test_make_e2e_is_skipped_with_the_reason_as_its_last_line(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_E2E")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.cluster"],
        cwd=ROOT,
        env={**environment, "PATH": str(tmp_path), "CLUSTER_E2E": str(tmp_path / "none")},  # and no docker there
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert done.stdout.splitlines()[-1].startswith("no cluster to test on: ")
