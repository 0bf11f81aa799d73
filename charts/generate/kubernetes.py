"""Kubernetes' own definitions, for values that go into a manifest as they are.

They are closed, so that a misspelt key fails here, and not when it does nothing.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

VERSION: Final = "1.34.0"
_CORE: Final = "io.k8s.api.core.v1."
_NETWORKING: Final = "io.k8s.api.networking.v1."
KINDS: Final[Mapping[str, str]] = {
    "affinity": _CORE + "Affinity",
    "container": _CORE + "Container",
    "dnsConfig": _CORE + "PodDNSConfig",
    "env": _CORE + "EnvVar",
    "envFrom": _CORE + "EnvFromSource",
    "hostAlias": _CORE + "HostAlias",
    "lifecycle": _CORE + "Lifecycle",
    "podSecurityContext": _CORE + "PodSecurityContext",
    "resources": _CORE + "ResourceRequirements",
    "securityContext": _CORE + "SecurityContext",
    "toleration": _CORE + "Toleration",
    "topologySpreadConstraint": _CORE + "TopologySpreadConstraint",
    "volume": _CORE + "Volume",
    "volumeMount": _CORE + "VolumeMount",
    "strategy": "io.k8s.api.apps.v1.DeploymentStrategy",
    "egressRule": _NETWORKING + "NetworkPolicyEgressRule",
    "peer": _NETWORKING + "NetworkPolicyPeer",
    "ingressTls": _NETWORKING + "IngressTLS",
}
"""What the chart's values call them, and what Kubernetes does."""


def reference(kind: str) -> dict[str, Any]:
    """A reference to one of `KINDS`, for use with `definitions()`."""
    return {"$ref": f"#/$defs/{KINDS[kind]}"}


def definitions() -> dict[str, Any]:
    """All of `KINDS` and what they refer to, by name."""
    every = _every()
    found: dict[str, Any] = {}
    wanted = list(KINDS.values())
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = _bare(every[name])
            wanted += _references(found[name])
    return dict(sorted(found.items()))


@cache
def _every() -> Mapping[str, Any]:
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"
    text = (folder / f"v{VERSION}-local-strict" / "_definitions.json").read_text()
    every: Mapping[str, Any] = json.loads(text)["$defs"]
    return every


def _bare(node: Any) -> Any:
    """Without prose and what only the API server understands."""
    if isinstance(node, list):
        return [_bare(below) for below in node]
    if not isinstance(node, dict):
        return node
    kept = {key: below for key, below in node.items() if not (key == "description" and isinstance(below, str))}
    return {key: _bare(below) for key, below in kept.items() if key != "format" and not key.startswith("x-kubernetes-")}


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for below in node:
            yield from _references(below)
    elif isinstance(node, dict):
        if isinstance(target := node.get("$ref"), str):
            yield target.rsplit("/", 1)[-1]
        for below in node.values():
            yield from _references(below)
