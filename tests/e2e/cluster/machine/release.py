"""TaskFlux in the cluster: its namespace under restricted Pod Security, Secrets for the servers outside, the chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from taskflux.local.console import Trouble
from tests.chart.rendering import CHART
from tests.e2e.cluster.kube import Kube, Refused
from tests.e2e.cluster.machine.node import Node
from tests.e2e.cluster.machine.outside import Outside
from tests.e2e.cluster.machine.place import Place
from tests.k8s.files import NAMESPACE, RELEASE

VALUES: Final = CHART / "ci" / "e2e-values.yaml"
TIMEOUT: Final = 300.0
RESTRICTED: Final = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


class Release:
    """The chart, installed with charts/taskflux/ci/e2e-values.yaml."""

    def __init__(self, place: Place, node: Node, kubeconfig: Path, servers: Outside) -> None:
        home = place.directory / "home"
        home.mkdir(mode=0o700, exist_ok=True)
        self._place = place
        self._node = node
        self._servers = servers
        self.kube = Kube(kubeconfig, NAMESPACE, home)

    def install(self, image: str) -> None:
        """Install it, or upgrade to these sources; it has waited until all is ready.

        Raises:
            Trouble: helm refuses, or something does not become ready; the text is what it said.
        """
        if not self._node.has(image):
            self._node.load_archive(self._place.directory / "taskflux.tar")
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED}}
        secrets = [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "stringData": data,
            }
            for name, data in self._servers.secrets().items()
        ]
        repository, _, tag = image.rpartition(":")
        command = ["upgrade", "--install", RELEASE, str(CHART), f"--namespace={NAMESPACE}", f"--values={VALUES}"]
        command += [f"--set-string=image.repository={repository}", f"--set-string=image.tag={tag}"]
        command += ["--wait", f"--timeout={TIMEOUT:.0f}s"]
        try:
            self.kube.apply(_list_of([namespace]))
            self.kube.apply(_list_of(secrets))
            self.kube.helm(*command, timeout=TIMEOUT + 60)
        except Refused as refused:
            raise Trouble(str(refused)) from refused


def _list_of(documents: list[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
