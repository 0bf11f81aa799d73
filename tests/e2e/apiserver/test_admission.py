"""What the chart renders, before the API server and its admission: no field that it does not know, no pod refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.chart.cases import EACH_CI_FILE
from tests.chart.objects import PodTemplate, pods
from tests.chart.rendering import Rendering, render
from tests.e2e.apiserver.cluster import Cluster, Document, Refused
from tests.e2e.apiserver.release import needed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Pods = Mapping[str, Document]


@EACH_CI_FILE
def test_the_api_server_knows_every_field(cluster: Cluster, namespace: str, ci: Path) -> None:
    rendering = render(ci, namespace=namespace)
    _make_what_pods_need(cluster, namespace, rendering)
    cluster.apply([each.document for each in rendering.objects], namespace, dry_run=True)


@EACH_CI_FILE
def test_every_pod_is_let_in_where_restricted_pod_security_is_enforced(
    cluster: Cluster, namespace: str, ci: Path
) -> None:
    templates = _templates(cluster, namespace, render(ci, namespace=namespace))
    cluster.apply([_pod(name, each) for name, each in templates.items()], namespace, dry_run=True)


@EACH_CI_FILE
def test_every_pod_is_refused_with_a_root_user(cluster: Cluster, namespace: str, ci: Path) -> None:
    templates = _templates(cluster, namespace, render(ci, namespace=namespace))
    as_user_0 = {name: _with(_pod(name, each), runAsUser=0) for name, each in templates.items()}
    maybe_root = {name: _with(_pod(name, each), runAsNonRoot=False) for name, each in templates.items()}
    _assert_refused(cluster, namespace, as_user_0, "runAsUser=0")
    _assert_refused(cluster, namespace, maybe_root, "runAsNonRoot != true")


def _templates(cluster: Cluster, namespace: str, rendering: Rendering) -> Mapping[str, PodTemplate]:
    """All pod templates, by a name for a pod of each."""
    _make_what_pods_need(cluster, namespace, rendering)
    found = {f"{each.owner.kind.lower()}-{each.owner.name}"[:63]: each for each in pods(rendering.objects)}
    assert {each.owner.kind for each in found.values()} >= {"Deployment", "Job", "Pod"}
    return found


def _make_what_pods_need(cluster: Cluster, namespace: str, rendering: Rendering) -> None:
    """No pod is let in without its account and its classes."""
    accounts = [each.document for each in rendering.of("ServiceAccount")]
    cluster.apply([*needed(rendering), *accounts], namespace)


def _pod(name: str, template: PodTemplate) -> Document:
    metadata = {"name": name, "labels": template.labels, "annotations": template.annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.spec}


def _with(pod: Document, **security: Any) -> Document:
    """The pod with this in its own security context, and not otherwise in its containers'."""
    changed = copy.deepcopy(dict(pod))
    spec = changed["spec"]
    spec["securityContext"] = {**spec.get("securityContext", {}), **security}
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for field in security:
            container.get("securityContext", {}).pop(field, None)
    return changed


def _assert_refused(cluster: Cluster, namespace: str, refused: Pods, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        cluster.apply(refused.values(), namespace, dry_run=True)
    said: Sequence[str] = str(caught.value).splitlines()
    for name in refused:
        (line,) = (line for line in said if f'pods "{name}" is forbidden' in line)
        assert 'violates PodSecurity "restricted:latest"' in line
        assert reason in line
