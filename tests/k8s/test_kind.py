"""k8s/kind.yaml, and the ingress controller that answers at the ports it maps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from tests.chart.rendering import load_values
from tests.k8s.files import DEV, K8S, chart, dependencies

KIND = K8S / "kind.yaml"


def _read_by_kind(kind: Path, config: Path, home: Path) -> str:
    """What kind says to a cluster of this configuration where there is nothing to run it: it reads it first."""
    done = subprocess.run(
        [kind, "create", "cluster", "--config", str(config)],
        env={"PATH": "/nonexistent", "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr


def test_kind_takes_the_configuration(kind: Path, tmp_path: Path) -> None:
    said = _read_by_kind(kind, KIND, tmp_path)
    assert "config" not in said
    assert "docker" in said, "it should only have missed Docker"


def test_kind_refuses_a_misspelt_field(kind: Path, tmp_path: Path) -> None:
    misspelt = tmp_path / "kind.yaml"
    misspelt.write_text(KIND.read_text().replace("extraPortMappings", "extraPortMapings"))
    assert "unable to decode config" in _read_by_kind(kind, misspelt, tmp_path)


def test_the_ingress_controller_listens_at_the_mapped_ports_of_that_node() -> None:
    (node,) = yaml.safe_load(KIND.read_text())["nodes"]
    mapped = {mapping["containerPort"] for mapping in node["extraPortMappings"]}
    values = load_values(K8S / "values-traefik.yaml")
    assert {port["hostPort"] for port in values["ports"].values()} == mapped
    assert values["nodeSelector"].items() <= node["labels"].items()
    assert values["service"]["spec"]["type"] == "ClusterIP"
    assert {mapping["listenAddress"] for mapping in node["extraPortMappings"]} == {"127.0.0.1"}


def test_the_charts_ingress_is_of_its_class_and_leads_to_services_that_there_are() -> None:
    values = load_values(K8S / "values-traefik.yaml")
    (ingress,) = chart(DEV).of("Ingress")
    assert ingress.spec["ingressClassName"] == values["ingressClass"]["name"]
    services = {each.name for each in chart(DEV).of("Service")}
    for rule in ingress.spec["rules"]:
        assert rule["host"].endswith(".localhost")
        assert {path["backend"]["service"]["name"] for path in rule["http"]["paths"]} <= services


def test_no_object_of_a_dependency_has_the_name_of_one_of_the_charts() -> None:
    assert not dependencies().names() & chart(DEV).names()
