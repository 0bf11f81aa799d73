"""Everything that is installed for the tests, by plain helm and kubectl, as skaffold.yaml says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.e2e.cluster.kube import Kube
from tests.k8s.files import DEV, NAMESPACE, RELEASE, ROOT, dependencies, releases

TIMEOUT: Final = 900.0
"""Seconds for one install: images are pulled, on a machine that does more than that."""
STAND_IN: Final = "taskflux:dev"
"""The image that k8s/dependencies/msg91.yaml names."""
KEDA: Final = "scaledobjects.keda.sh"


class Installation:
    """TaskFlux and what it needs, on one cluster."""

    def __init__(self, kube: Kube, image: str, ingress_class: str, values: Path = DEV) -> None:
        """`values` are the chart's."""
        self.kube = kube
        self.image = image
        self._ingress_class = ingress_class
        self._values = values

    def third_parties(self, names: Sequence[str]) -> None:
        """Others' charts, by their names in skaffold.yaml, without those that are installed already."""
        for release in releases():
            if release["name"] in names:
                self.kube.helm(*_arguments_for(release), "--wait", f"--timeout={TIMEOUT:.0f}s", timeout=TIMEOUT + 60)

    def has_keda(self) -> bool:
        """Whether KEDA's definitions are there."""
        return KEDA in self.kube.kubectl("get", "crd", "--output=name")

    def dependencies(self) -> None:
        """k8s/dependencies, with the image under test in the stand-in; `ready` waits for them."""
        documents = [_with_image(each.document, self.image) for each in dependencies().objects]
        namespace = [each for each in documents if each["kind"] == "Namespace"]
        others = [each for each in documents if each["kind"] != "Namespace"]
        self.kube.apply(_list_of(namespace))
        self.kube.apply(_list_of(others))

    def wait_for_dependencies(self) -> None:
        """Until every one of them serves, and the topic of mixed types is there."""
        for kind in ("StatefulSet", "Deployment"):
            for each in dependencies().of(kind):
                self.kube.kubectl(
                    "rollout", "status", f"{kind}/{each.name}", f"--timeout={TIMEOUT:.0f}s", timeout=TIMEOUT + 60
                )
        for each in dependencies().of("Job"):
            self.kube.kubectl("wait", f"job/{each.name}", "--for=condition=complete", "--timeout=300s", timeout=360)

    def taskflux(self, values: Mapping[str, Any] | None = None) -> str:
        """The chart with its values and `values` on top; it has waited until all is ready."""
        repository, _, tag = self.image.rpartition(":")
        own = [f"--set-string=image.repository={repository}", f"--set-string=image.tag={tag}"]
        own += [f"--set-string=ingress.className={self._ingress_class}"]
        own += [f"--set-json={name}={json.dumps(value)}" for name, value in (values or {}).items()]
        command = ["upgrade", "--install", RELEASE, str(ROOT / "charts" / "taskflux"), f"--namespace={NAMESPACE}"]
        command += [f"--values={self._values}", *own, "--wait", f"--timeout={TIMEOUT:.0f}s"]
        return self.kube.helm(*command, timeout=TIMEOUT + 60)

    def test(self) -> str:
        """`helm test`, with what its pods wrote."""
        return self.kube.helm("test", RELEASE, f"--namespace={NAMESPACE}", "--logs", "--timeout=300s", timeout=360)

    def remove(self) -> None:
        """Remove TaskFlux and its dependencies; others' charts stay, since others may use them."""
        self.kube.helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", "--ignore-not-found", "--wait", timeout=360)
        self.kube.kubectl("delete", f"namespace/{NAMESPACE}", "--ignore-not-found", "--timeout=300s", timeout=360)


def _arguments_for(release: Mapping[str, Any]) -> list[str]:
    """`helm upgrade --install` for a release of skaffold.yaml."""
    arguments = ["upgrade", "--install", release["name"], release["remoteChart"], f"--repo={release['repo']}"]
    arguments += [f"--version={release['version']}", f"--namespace={release['namespace']}", "--create-namespace"]
    return arguments + [f"--values={ROOT / file}" for file in release["valuesFiles"]]


def _with_image(document: Any, image: str) -> Any:
    """The document with the stand-in's image replaced, wherever it stands."""
    if isinstance(document, Mapping):
        return {
            key: image if key == "image" and value == STAND_IN else _with_image(value, image)
            for key, value in document.items()
        }
    if isinstance(document, list):
        return [_with_image(each, image) for each in document]
    return document


def _list_of(documents: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
