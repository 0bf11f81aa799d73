"""Rendered objects, and the ways into them that tests take again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

HOOK: Final = "helm.sh/hook"

_POD_SPECS: Final[Mapping[str, Sequence[str]]] = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}


@dataclass(frozen=True)
class Object:
    """One object as it was rendered."""

    document: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.document["kind"])

    @property
    def api_version(self) -> str:
        return str(self.document["apiVersion"])

    @property
    def metadata(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.document["metadata"]
        return found

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def labels(self) -> Mapping[str, str]:
        return self.metadata.get("labels") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.metadata.get("annotations") or {}

    @property
    def spec(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.document["spec"]
        return found

    @property
    def data(self) -> Mapping[str, str]:
        """Of a ConfigMap."""
        return self.document.get("data") or {}

    @property
    def hooks(self) -> frozenset[str]:
        """The moments of a release at which helm makes it; none: it is part of the release itself."""
        text = self.annotations.get(HOOK, "")
        return frozenset(part.strip() for part in text.split(",") if part.strip())

    @property
    def weight(self) -> int:
        """Among the hooks of one moment: the lightest first."""
        return int(self.annotations.get("helm.sh/hook-weight", "0"))

    @property
    def component(self) -> str | None:
        """The handler it belongs to."""
        return self.labels.get("app.kubernetes.io/component")

    @property
    def pod(self) -> PodTemplate | None:
        """The pods that it makes, or is."""
        if self.kind not in _POD_SPECS:
            return None
        template: Mapping[str, Any] = self.document
        for key in _POD_SPECS[self.kind]:
            template = template[key]
        return PodTemplate(self, template.get("metadata") or {}, template["spec"])

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class PodTemplate:
    """What a pod is made from."""

    owner: Object
    metadata: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def labels(self) -> Mapping[str, str]:
        return self.metadata.get("labels") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.metadata.get("annotations") or {}

    @property
    def init_containers(self) -> Sequence[Mapping[str, Any]]:
        return self.spec.get("initContainers") or []

    @property
    def containers(self) -> Sequence[Mapping[str, Any]]:
        """Those that run at the same time."""
        found: Sequence[Mapping[str, Any]] = self.spec["containers"]
        return found

    @property
    def all_containers(self) -> Sequence[Mapping[str, Any]]:
        return [*self.init_containers, *self.containers]

    def __str__(self) -> str:
        return f"pod of {self.owner}"


def pods(objects: Iterable[Object]) -> Iterator[PodTemplate]:
    """Every pod template among these."""
    for each in objects:
        if (pod := each.pod) is not None:
            yield pod


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    wanted: Mapping[str, str] = selector.get("matchLabels") or {}
    if any(labels.get(name) != value for name, value in wanted.items()):
        return False
    return all(_expression(each, labels) for each in selector.get("matchExpressions") or [])


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case other:
            raise ValueError(f"there is no operator {other!r}")
