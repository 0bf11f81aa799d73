"""What a test does with a cluster: kubectl, helm, namespaces, and what is in them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from tests.chart import crds, tools
from tests.chart.objects import Object

COMMAND_TIMEOUT = 180.0
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/warn": "restricted",  # of a Deployment or a Job it says only this
}
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node", "labels": {"kubernetes.io/hostname": "node", "kubernetes.io/os": "linux"}},
}
# They come and go by themselves.
PASSING = ("events", "events.events.k8s.io", "leases.coordination.k8s.io")

Document = Mapping[str, Any]
Inventory = Mapping[tuple[str, str], Object]


class Refused(Exception):
    """kubectl or helm failed; the text is what it said."""


class Said(NamedTuple):
    """What helm wrote: its answer, and what the API server warned of."""

    answer: str
    warnings: str


class Cluster:
    """A cluster, as its administrator sees it."""

    def __init__(self, kubeconfig: Path, directory: Path) -> None:
        """`directory` is where helm and kubectl keep their own things."""
        self.kubeconfig = kubeconfig
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "KUBECONFIG": str(kubeconfig),
            "KUBECACHEDIR": str(directory / "kubectl"),
        }
        self._numbers = count(1)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints.

        Raises:
            Refused: it failed.
        """
        return self._run(tools.kubectl(), arguments, stdin).stdout

    def helm(self, *arguments: str) -> Said:
        """What helm prints.

        Raises:
            Refused: it failed.
        """
        done = self._run(tools.helm(), arguments, None)
        return Said(done.stdout, done.stderr)

    def prepare(self) -> None:
        """A node, and KEDA's and the Prometheus operator's definitions."""
        self.apply([NODE])
        files = [f"--filename={file}" for file in crds.files()]
        self.kubectl("apply", "--server-side", *files)
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        self.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=60s")

    def new_namespace(self, labels: Mapping[str, str] = RESTRICTED) -> str:
        """An empty namespace of its own name, ready to take pods."""
        name = f"test-{next(self._numbers)}"
        self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}}])
        for made_by_itself in ("serviceaccount/default", "configmap/kube-root-ca.crt"):
            self.kubectl("wait", "--for=create", made_by_itself, f"--namespace={name}", "--timeout=60s")
        return name

    def apply(self, documents: Iterable[Document], namespace: str = "default", *, dry_run: bool = False) -> None:
        """Make these, or change them; fields that the API server does not know are refused.

        Raises:
            Refused: the API server, or its admission, refused one of them; the text names each of those.
        """
        options = ["--server-side", "--validate=strict", *(["--dry-run=server"] if dry_run else [])]
        self.kubectl("apply", f"--namespace={namespace}", *options, "--filename=-", stdin=_list_of(documents))

    def differs(self, documents: Iterable[Document], namespace: str) -> str:
        """What applying these as helm does would change, as a diff; empty when it is as they say.

        Raises:
            Refused: they cannot be compared.
        """
        options = ["--server-side", "--field-manager=helm", "--force-conflicts", "--filename=-"]
        arguments = ("diff", f"--namespace={namespace}", *options)
        done = self._call(tools.kubectl(), arguments, _list_of(documents))
        if done.returncode > 1:
            raise Refused(done.stderr)
        return done.stdout

    def inventory(self, namespace: str, *options: str) -> Inventory:
        """All that is in a namespace, by kind and name, of every kind that the API server can list."""
        asked = ",".join(self._kinds)
        answer = self.kubectl("get", asked, f"--namespace={namespace}", "--output=json", *options)
        return _by_name(answer)

    def everywhere(self, selector: str) -> Inventory:
        """What carries these labels, in every namespace and in none."""
        answers = (
            self.kubectl("get", ",".join(self._kinds), "--all-namespaces", "--output=json", f"--selector={selector}"),
            self.kubectl("get", ",".join(self._cluster_kinds), "--output=json", f"--selector={selector}"),
        )
        return {key: each for answer in answers for key, each in _by_name(answer).items()}

    @cached_property
    def _kinds(self) -> Sequence[str]:
        return self._resources("--namespaced=true")

    @cached_property
    def _cluster_kinds(self) -> Sequence[str]:
        return self._resources("--namespaced=false")

    def _resources(self, *options: str) -> Sequence[str]:
        listed = self.kubectl("api-resources", "--verbs=list", "--output=name", *options).split()
        return [name for name in listed if name not in PASSING]

    def _run(self, program: Path, arguments: Sequence[str], stdin: str | None) -> subprocess.CompletedProcess[str]:
        done = self._call(program, arguments, stdin)
        if done.returncode != 0:
            raise Refused(f"{program.name} {' '.join(arguments)}:\n{done.stderr}{done.stdout[-4000:]}")
        return done

    def _call(self, program: Path, arguments: Sequence[str], stdin: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments],
            env=self._environment,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )


def without_owned(inventory: Inventory) -> Inventory:
    """Objects that users created, without those of controllers and helm's own records."""
    return {
        key: each
        for key, each in inventory.items()
        if not each.metadata.get("ownerReferences") and each.document.get("type") != "helm.sh/release.v1"
    }


def _by_name(answer: str) -> Inventory:
    objects = [Object(item) for item in json.loads(answer)["items"]]
    return {(each.kind, each.name): each for each in objects}


def _list_of(documents: Iterable[Document]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
