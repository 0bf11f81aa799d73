"""The custom resources that the chart makes, as KEDA, the Prometheus operator, the Gateway API and Strimzi define them.

The definitions come from Go modules, pinned by the sum that Go itself computes over a module's files. Strimzi publishes
no module with its own: the fields of `definitions/` are written down from its API reference.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from taskflux.local.console import Trouble
from tests.chart import tools
from tests.chart.tools import Missing

DOWNLOAD_TIMEOUT = 300.0
STRIMZI = Path(__file__).parent / "definitions"


class Module(NamedTuple):
    """A Go module at a version, and the sum of its files as go.sum writes it."""

    path: str
    version: str
    sum: str


KEDA = Module("github.com/kedacore/keda/v2", "v2.20.2", "h1:SR60v8uIcelbveS8n/1jcl8tLdBBIbHMxmdOHw8tKqA=")
PROMETHEUS_OPERATOR = Module(
    "github.com/prometheus-operator/prometheus-operator",
    "v0.85.0",
    "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
)
GATEWAY_API = Module("sigs.k8s.io/gateway-api", "v1.4.1", "h1:NPxFutNkKNa8UfLd2CMlEuhIPMQgDQ6DXNKG9sHbJU8=")
# Of the Prometheus operator those that other charts use; the rest define its own servers.
MONITORING = ("podmonitors", "probes", "prometheusrules", "servicemonitors")

# What a chart may set in an object's metadata; the definitions themselves leave it open.
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": TEXTS,
        "annotations": TEXTS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def files() -> list[Path]:
    """The manifests of the definitions.

    Raises:
        Missing: they are not on this machine and cannot be had; the text says why.
    """
    monitoring = directory(PROMETHEUS_OPERATOR) / "example" / "prometheus-operator-crd"
    return [
        *sorted((directory(KEDA) / "config" / "crd" / "bases").glob("*.yaml")),
        directory(GATEWAY_API) / "config" / "crd" / "standard" / "gateway.networking.k8s.io_httproutes.yaml",
        *(monitoring / f"monitoring.coreos.com_{plural}.yaml" for plural in MONITORING),
        *sorted(STRIMZI.glob("*.yaml")),
    ]


@cache
def crds() -> list[dict[str, Any]]:
    """The definitions, parsed; raises as `files` does."""
    return [yaml.load(file.read_text(), Loader=yaml.CSafeLoader) for file in files()]


@cache
def schemas() -> dict[tuple[str, str], dict[str, Any]]:
    """A JSON schema for each (apiVersion, kind) that is served; it takes no field that the API server would drop.

    Raises:
        Missing: as `files`.
    """
    found = {}
    for definition in crds():
        spec = definition["spec"]
        for version in spec["versions"]:
            if version["served"]:
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                found[key] = _of_an_object(version["schema"]["openAPIV3Schema"])
    return found


@cache
def scalers() -> dict[str, Any]:
    """KEDA's own list of its scalers: each trigger's type with every key of its metadata.

    Raises:
        Missing: as `files`.
    """
    listed: dict[str, Any] = json.loads((directory(KEDA) / "schema" / "generated" / "scalers-schema.json").read_text())
    return listed


@cache
def directory(module: Module) -> Path:
    """Where the module's files are, fetched by Go when they are not there yet.

    Raises:
        Missing: there is no Go, or it cannot fetch the module.
        Trouble: what it has is not what is pinned.
    """
    name = f"{module.path}@{module.version}"
    with tempfile.TemporaryDirectory(prefix="taskflux-modules-") as nowhere:  # outside of any module
        try:
            done = subprocess.run(
                [tools.go(), "mod", "download", "-json", name],
                cwd=nowhere,
                env=tools.go_environment(),
                capture_output=True,
                text=True,
                timeout=DOWNLOAD_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Missing(f"{name} was not fetched within {DOWNLOAD_TIMEOUT:.0f} s") from None
    answer = json.loads(done.stdout or "{}")
    if done.returncode != 0:
        raise Missing(f"{name} could not be fetched: {answer.get('Error') or done.stderr.strip() or 'go said nothing'}")
    if answer["Sum"] != module.sum:
        raise Trouble(f"{name} is not what is pinned: its sum is {answer['Sum']}, and not {module.sum}")
    return Path(answer["Dir"])


def _of_an_object(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a whole object; what the API server itself knows of each object is added."""
    closed = _closed(schema)
    closed["properties"]["metadata"] = METADATA
    closed["required"] = sorted({"apiVersion", "kind", "metadata", *closed.get("required", ())})
    return closed


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with every object closed whose unknown fields would be dropped, as JSON Schema reads it.

    `allOf`, `anyOf`, `oneOf` and `not` stay: by the rules for definitions they only narrow what stands beside.
    """
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: _closed(below) for name, below in schema["properties"].items()}
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if schema.get("nullable") and "type" in schema:
        closed["type"] = [schema["type"], "null"]
    return closed
