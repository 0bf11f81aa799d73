"""What the cluster runs besides our own pods: NetworkPolicies' enforcement, CoreDNS, metrics-server and KEDA.

Their manifests are those in their Go modules; the images hold the programs that were built from the same modules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from tests.chart import crds
from tests.chart.crds import Module
from tests.e2e.cluster.kube import Kube
from tests.e2e.cluster.machine.node import DNS, NAME, QUEUE, Image, Node
from tests.e2e.cluster.machine.place import DOMAIN, NAMES, NODE, OUTSIDE

POLICIES: Final = Module(
    "sigs.k8s.io/kube-network-policies", "v0.8.0", "h1:dzecRNzdmg+VmHEQWTIjxnCgf412J+8CKHqbKgCiWkk="
)
METRICS: Final = Module("sigs.k8s.io/metrics-server", "v0.8.0", "h1:Zlsi3sBWEtFKCD3+xSysThvXyLQ363rUAlqpnsY5JwI=")
IMAGES: Final = (
    Image("localhost/netpol", "netpol", "/bin/netpol"),
    Image("localhost/coredns", "coredns", "/coredns"),
    Image("localhost/metrics-server", "metrics-server", "/metrics-server"),
    Image("localhost/keda", "keda", "/keda"),
    Image("localhost/keda-metrics-apiserver", "keda-adapter", "/keda-adapter"),
    Image("localhost/keda-admission-webhooks", "keda-admission-webhooks", "/keda-admission-webhooks"),
)
MANIFESTS: Final = Path(__file__).with_name("manifests")

Document = Mapping[str, Any]


class Operators:
    """Installed by plain manifests, in namespaces of their own."""

    def __init__(self, node: Node, kube: Kube) -> None:
        """`kube` is bound to no namespace."""
        self._node = node
        self._kube = kube

    def up(self) -> None:
        """Apply all, and wait until all are ready."""
        self._node.load(IMAGES)
        self._node.divert()
        kube = self._kube
        kube.kubectl("wait", f"node/{NAME}", "--for=create", "--timeout=60s")
        manifests: list[Any] = [*_policies(), *_own("coredns"), *_metrics_server(kube), *_keda(kube)]
        # A definition, or a namespace, has to be there before what needs it.
        for each in manifests:
            if each["kind"] in ("Deployment", "DaemonSet"):
                (container,) = each["spec"]["template"]["spec"]["containers"]
                container["image"] = self._node.tagged(container["image"])
        for first in (True, False):
            kube.apply(_list_of([each for each in manifests if (each["kind"] in FIRST) is first]))
        for each in manifests:
            if each["kind"] in ("Deployment", "DaemonSet"):
                name, namespace = f"{each['kind']}/{each['metadata']['name']}", each["metadata"]["namespace"]
                kube.kubectl("rollout", "status", name, f"--namespace={namespace}", "--timeout=180s", timeout=200)
        for service in ("v1beta1.metrics.k8s.io", "v1beta1.external.metrics.k8s.io"):
            kube.kubectl("wait", f"apiservice/{service}", "--for=condition=Available", "--timeout=120s", timeout=130)


FIRST: Final = ("CustomResourceDefinition", "Namespace")


def _own(name: str) -> Iterator[Any]:
    """A manifest of ours, with what depends on this place put in."""
    text = (MANIFESTS / f"{name}.yaml").read_text()
    hosts = "\n".join(f"        {OUTSIDE} {each}.{DOMAIN}" for each in NAMES)
    for key, value in {"DNS": DNS, "HOSTS": hosts.strip()}.items():
        text = text.replace(f"${{{key}}}", value)
    yield from yaml.safe_load_all(text)


def _policies() -> Iterator[Any]:
    """Without NRI, which this containerd does not have."""
    for each in yaml.safe_load_all((crds.directory(POLICIES) / "install.yaml").read_text()):
        if each is not None:
            if each["kind"] == "DaemonSet":
                pod = each["spec"]["template"]["spec"]
                (container,) = pod["containers"]
                container["args"] = [
                    "--disable-nri=true",
                    f"--nfqueue-id={QUEUE}",
                    f"--hostname-override={NAME}",
                    f"--metrics-bind-address={NODE}:9080",
                ]
                container["securityContext"] |= {"runAsUser": 0}
                container.pop("volumeMounts")
                pod.pop("volumes")
                _with_image(container, "localhost/netpol")
            yield each


def _metrics_server(kube: Kube) -> Iterator[Any]:
    for each in _kustomized(kube, crds.directory(METRICS) / "manifests" / "base"):
        if each["kind"] == "Deployment":
            (container,) = each["spec"]["template"]["spec"]["containers"]
            container["args"].append("--kubelet-insecure-tls")
            _with_image(container, "localhost/metrics-server")
            _look_soon(container)
        yield each


def _keda(kube: Kube) -> Iterator[Any]:
    for each in _kustomized(kube, crds.directory(crds.KEDA) / "config" / "default"):
        if each["kind"] == "Deployment":
            (container,) = each["spec"]["template"]["spec"]["containers"]
            name = re.sub(r"^ghcr\.io/kedacore/([^:]+):.*", r"localhost/\1", container["image"])
            _with_image(container, name)
            _look_soon(container)
        yield each


def _kustomized(kube: Kube, folder: Path) -> Iterator[Any]:
    yield from yaml.safe_load_all(kube.kubectl("kustomize", str(folder)))


def _list_of(documents: Sequence[Document]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})


def _with_image(container: MutableMapping[str, Any], image: str) -> None:
    container["image"] = image
    container["imagePullPolicy"] = "Never"
    container["resources"] = {"requests": {"cpu": "20m", "memory": "32Mi"}}


def _look_soon(container: MutableMapping[str, Any]) -> None:
    """Their own probes first look after 20 seconds."""
    container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 60}
