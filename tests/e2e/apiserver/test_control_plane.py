"""The control plane that the chart is tested against is a real one, and would refuse what a cluster refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.e2e.apiserver.cluster import Cluster, Refused
from tests.e2e.apiserver.control_plane import ControlPlane
from tests.e2e.programs import built, kubernetes_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RESTRICTED_CONTEXT = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
POD = {"containers": [{"name": "one", "image": "image", "securityContext": RESTRICTED_CONTEXT}]}
LABELS = {"app": "one"}


def _object(api_version: str, kind: str, spec: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "one", **metadata}, "spec": spec}


def _deployment() -> dict[str, Any]:
    template = {"metadata": {"labels": LABELS}, "spec": POD}
    return _object("apps/v1", "Deployment", {"replicas": 2, "selector": {"matchLabels": LABELS}, "template": template})


def _scaled_object(**spec: Any) -> dict[str, Any]:
    trigger = {"type": "kafka", "metadata": {"bootstrapServers": "kafka:9092", "topic": "t", "consumerGroup": "g"}}
    return _object(
        "keda.sh/v1alpha1", "ScaledObject", {"scaleTargetRef": {"name": "one"}, "triggers": [trigger], **spec}
    )


def test_it_is_of_the_version_that_go_mod_names(cluster: Cluster) -> None:
    served = json.loads(cluster.kubectl("get", "--raw", "/version"))
    assert served["gitVersion"] == kubernetes_version()
    assert kubernetes_version().startswith("v1.34.")


def test_a_deployment_becomes_available_and_its_pods_go_with_it(cluster: Cluster, namespace: str) -> None:
    here = f"--namespace={namespace}"
    cluster.apply([_deployment()], namespace)
    cluster.kubectl("wait", "--for=condition=Available", "deployment/one", here, "--timeout=60s")
    kinds = [kind for kind, _ in cluster.inventory(namespace)]
    assert (kinds.count("ReplicaSet"), kinds.count("Pod")) == (1, 2)
    cluster.kubectl("delete", "deployment", "one", here, "--cascade=foreground", "--wait", "--timeout=60s")
    cluster.kubectl("wait", "--for=delete", "pods", "--all", here, "--timeout=60s")
    assert not {"Deployment", "ReplicaSet", "Pod"} & {kind for kind, _ in cluster.inventory(namespace)}


def test_a_job_completes(cluster: Cluster, namespace: str) -> None:
    job = _object("batch/v1", "Job", {"template": {"spec": {**POD, "restartPolicy": "Never"}}})
    cluster.apply([job], namespace)
    cluster.kubectl("wait", "--for=condition=Complete", "job/one", f"--namespace={namespace}", "--timeout=60s")


def test_a_pod_that_is_not_restricted_is_refused_and_only_there(cluster: Cluster, namespace: str) -> None:
    pod = _object("v1", "Pod", {"containers": [{"name": "one", "image": "image"}]})
    with pytest.raises(Refused, match=r'violates PodSecurity "restricted:latest".*runAsNonRoot != true'):
        cluster.apply([pod], namespace, dry_run=True)
    cluster.apply([pod], cluster.new_namespace({}), dry_run=True)


def test_an_unknown_field_is_refused_in_kinds_of_its_own_and_in_kedas(cluster: Cluster, namespace: str) -> None:
    cluster.apply([_scaled_object(minReplicaCount=0)], namespace, dry_run=True)
    with pytest.raises(Refused, match=r"\.spec\.minReplicas: field not declared in schema|unknown field"):
        cluster.apply([_scaled_object(minReplicas=0)], namespace, dry_run=True)
    deployment = _deployment()
    deployment["spec"]["template"]["spec"] = {**POD, "terminationGracePeriod": 3}
    with pytest.raises(Refused, match=r"terminationGracePeriod"):
        cluster.apply([deployment], namespace, dry_run=True)


def test_a_difference_is_seen(cluster: Cluster, namespace: str) -> None:
    deployment = _deployment()
    cluster.apply([deployment], namespace)
    # Its controller writes its status meanwhile, which would differ, too.
    cluster.kubectl("wait", "--for=condition=Available", "deployment/one", f"--namespace={namespace}", "--timeout=60s")
    assert cluster.differs([deployment], namespace) == ""
    deployment["spec"]["minReadySeconds"] = 7
    assert "minReadySeconds: 7" in cluster.differs([deployment], namespace)


async def test_nothing_of_it_runs_on_when_it_is_stopped(tmp_path_factory: pytest.TempPathFactory) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    async with ControlPlane(built(), tmp_path_factory.mktemp("another")):
        during = {child.name() for child in psutil.Process().children(recursive=True) if child.pid not in before}
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert {"etcd", "kube-apiserver", "kube-scheduler", "kwok"} <= during
    assert after == before
