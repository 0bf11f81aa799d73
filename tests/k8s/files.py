"""The files under test, read as what they are."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import yaml

from tests.chart import tools
from tests.chart.objects import Object
from tests.chart.rendering import Rendering, render

ROOT: Final = Path(__file__).parents[2]
K8S: Final = ROOT / "k8s"
COMPOSE: Final = ROOT / "docker-compose.yaml"
SKAFFOLD: Final = ROOT / "skaffold.yaml"
WORKFLOW: Final = ROOT / ".github" / "workflows" / "ci.yml"
WEEKLY: Final = WORKFLOW.with_name("cluster.yml")
NAMESPACE: Final = "taskflux"
RELEASE: Final = "taskflux"
DEV: Final = K8S / "values-dev.yaml"
RELOAD: Final = K8S / "values-reload.yaml"

Document = Mapping[str, Any]


@cache
def dependencies() -> Rendering:
    """What `kubectl apply -k k8s/dependencies` would apply."""
    done = subprocess.run(
        [tools.kubectl(), "kustomize", str(K8S / "dependencies")], capture_output=True, text=True, check=True
    )
    return Rendering([Object(document) for document in yaml.safe_load_all(done.stdout)])


def chart(*values: Path) -> Rendering:
    """The chart as it is installed beside them."""
    return render(*values, release=RELEASE, namespace=NAMESPACE)


def skaffold() -> Mapping[str, Document]:
    """skaffold.yaml's modules, by name."""
    modules = list(yaml.safe_load_all(SKAFFOLD.read_text()))
    return {module["metadata"]["name"]: module for module in modules}


def releases() -> Sequence[Document]:
    """Every helm release of skaffold.yaml."""
    return [
        release
        for module in skaffold().values()
        for release in module.get("deploy", {}).get("helm", {}).get("releases", ())
    ]


@cache
def compose_services() -> Mapping[str, Document]:
    """The services of docker-compose.yaml, anchors and merges resolved."""
    services: Mapping[str, Document] = yaml.safe_load(COMPOSE.read_text())["services"]
    return services


def of_taskflux() -> Mapping[str, Document]:
    """Those of the services that run TaskFlux, by the handler that each runs."""
    running = {name: each for name, each in compose_services().items() if each.get("command", ["-"])[0] == "run"}
    return {each["command"][1]: {**each, "name": name} for name, each in running.items()}


def environment(container: Mapping[str, Any]) -> Mapping[str, str]:
    """The plain variables of a container of Kubernetes'."""
    return {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}


def kafka_properties(variables: Mapping[str, str]) -> Mapping[str, str]:
    """What Apache Kafka's image writes into its server.properties for these variables.

    `_` is a dot, `__` an underscore, `___` a dash; those for the JVM and its logs are not server settings.
    """
    own = re.compile(r"KAFKA_(HEAP_OPTS|OPTS|JMX_.*|LOG4J_.*|TOOLS_LOG4J_.*|GC_LOG_OPTS|JVM_PERFORMANCE_OPTS|VERSION)")
    named = {name: value for name, value in variables.items() if name.startswith("KAFKA_") and not own.fullmatch(name)}
    dashes = {"___": "-", "__": "_", "_": "."}
    return {
        re.sub("_{1,3}", lambda found: dashes[found[0]], name.removeprefix("KAFKA_").lower()): value
        for name, value in named.items()
    }


def command_settings(arguments: Sequence[str]) -> Mapping[str, str]:
    """PostgreSQL's `-c name=value`."""
    pairs = [text for flag, text in pairwise(arguments) if flag == "-c"]
    return dict(pair.split("=", 1) for pair in pairs)
