"""A release of the chart in a namespace of its own: what helm does to it, and what is there afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.chart.objects import Object
from tests.chart.rendering import CHART, Rendering, Values, render
from tests.e2e.apiserver.cluster import Cluster, Document, Inventory, Said, without_owned

WAIT = ("--wait", "--timeout=150s")
# References to Secrets, and where each says which one: `secretKeyRef: {name, key}`, `secret: {secretName}`, …
SECRET_REFERENCES = ("secretKeyRef", "secretRef", "secret", "imagePullSecrets", "secretTargetRef")


class Release:
    """Installed, changed and removed by helm, each step waited for."""

    def __init__(
        self, cluster: Cluster, namespace: str, base: Path, *, always: Values | None = None, chart: Path = CHART
    ) -> None:
        """`base` is the file of values that it starts from, with `always` on top. What those name is made at once:
        Secrets and the like.
        """
        self.cluster = cluster
        self.namespace = self.name = namespace  # no other release has this label
        self._base = base
        self._always = always or {}
        self._chart = chart
        cluster.apply(needed(self.rendering()), namespace)
        self.before = cluster.inventory(namespace)

    def rendering(self, *values: Values) -> Rendering:
        """What `helm template` makes of these values on top of the base."""
        return render(self._base, self._always, *values, release=self.name, namespace=self.namespace, chart=self._chart)

    def install(self) -> Said:
        """helm waits until all is ready."""
        return self._with("install", {})

    def upgrade(self, values: Values) -> Said:
        """The same with other values, on top of the base."""
        return self._with("upgrade", values)

    def _with(self, verb: str, values: Values) -> Said:
        with TemporaryDirectory(prefix="taskflux-values-") as directory:
            options = [f"--values={self._base}"]
            for number, each in enumerate((self._always, values)):
                file = Path(directory) / f"{number}.yaml"
                file.write_text(json.dumps(each))
                options.append(f"--values={file}")
            return self._helm(verb, self.name, str(self._chart), *options, *WAIT)

    def rollback(self, revision: int) -> Said:
        """Back to an earlier revision."""
        return self._helm("rollback", self.name, str(revision), *WAIT)

    def test(self) -> Said:
        """`helm test`."""
        return self._helm("test", self.name, "--timeout=120s")

    def uninstall(self) -> Said:
        """Remove all of it, including what depends on it."""
        return self._helm("uninstall", self.name, "--cascade=foreground", *WAIT)

    def made(self) -> Inventory:
        """What is there now and was not before the install, without what controllers and helm made on their own."""
        now = without_owned(self.cluster.inventory(self.namespace))
        return {key: each for key, each in now.items() if key not in self.before}

    def hooks(self) -> Mapping[str, str]:
        """Name → how its last run ended, of the hooks that ran."""
        status = json.loads(self._helm("status", self.name, "--output=json").answer)
        runs = {hook["name"]: hook.get("last_run") or {} for hook in status.get("hooks") or []}
        return {name: run["phase"] for name, run in runs.items() if run.get("phase")}

    def differs(self, rendering: Rendering) -> str:
        """How the cluster differs from a rendering, fields that are there too much included; empty when it does not."""
        return self.cluster.differs([self._as_helm_applies(each) for each in lasting(rendering)], self.namespace)

    def _as_helm_applies(self, each: Object) -> Document:
        owner = {"meta.helm.sh/release-name": self.name, "meta.helm.sh/release-namespace": self.namespace}
        labels = {**each.labels, "app.kubernetes.io/managed-by": "Helm"}
        metadata = {**each.metadata, "labels": labels, "annotations": {**each.annotations, **owner}}
        return {**each.document, "metadata": metadata}

    def _helm(self, *arguments: str) -> Said:
        return self.cluster.helm(*arguments, f"--namespace={self.namespace}")


def lasting(rendering: Rendering) -> Sequence[Object]:
    """The objects of the release itself, without its hooks and tests."""
    return [each for each in rendering.objects if not each.hooks]


def needed(rendering: Rendering) -> Sequence[Document]:
    """What a rendering names and does not make itself: Secrets with the keys that are read, priority classes."""
    made, secrets = rendering.names(), dict[str, set[str]]()
    for each in rendering.objects:
        for name, key in _secrets_in(each.document):
            secrets.setdefault(name, set()).add(key)
    classes = {each.pod.spec.get("priorityClassName") for each in rendering.objects if each.pod is not None}
    return [
        *(_secret(name, keys) for name, keys in secrets.items() if ("Secret", name) not in made),
        *(_priority_class(name) for name in classes if name and not name.startswith("system-")),
    ]


def _secrets_in(value: Any) -> Iterator[tuple[str, str]]:
    """(name, key) of every reference below; the key is empty where the whole Secret is meant."""
    if isinstance(value, Mapping):
        for field, below in value.items():
            if field in SECRET_REFERENCES:
                for reference in below if isinstance(below, list) else [below]:
                    if isinstance(reference, Mapping) and (name := reference.get("name", reference.get("secretName"))):
                        yield name, reference.get("key", "")
                        yield from ((name, item["key"]) for item in reference.get("items", ()))
            else:
                yield from _secrets_in(below)
    elif isinstance(value, list):
        for below in value:
            yield from _secrets_in(below)


def _secret(name: str, keys: set[str]) -> Document:
    data = {key: "secret" for key in keys if key}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def _priority_class(name: str) -> Document:
    return {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 1000}
