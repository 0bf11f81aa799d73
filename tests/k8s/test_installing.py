"""What `make e2e` installs, before a real API server: strict about fields, with restricted Pod Security enforced.

There is no kubelet behind it, so no container runs: pods are called ready, and Jobs done, once they are scheduled.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from taskflux.local.console import Trouble
from tests.chart.tools import Missing
from tests.e2e.apiserver.cluster import Cluster
from tests.e2e.apiserver.control_plane import ControlPlane
from tests.e2e.cluster.installation import Installation
from tests.e2e.cluster.kube import Kube, Refused
from tests.e2e.programs import built
from tests.k8s.files import K8S, NAMESPACE, chart, dependencies

pytestmark = pytest.mark.timeout(400)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def kube(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kube]:
    """A cluster with a node and the definitions of KEDA."""
    try:
        binaries = built()
    except Missing as missing:
        pytest.skip(str(missing))
    except Trouble as trouble:
        pytest.fail(str(trouble))
    directory = tmp_path_factory.mktemp("cluster")
    async with ControlPlane(binaries, directory) as control_plane:
        Cluster(control_plane.kubeconfig, tmp_path_factory.mktemp("client")).prepare()
        yield Kube(control_plane.kubeconfig, NAMESPACE, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def installed(kube: Kube) -> Installation:
    """Dependencies and chart, by the very code that `make e2e` runs."""
    installation = Installation(kube, "taskflux:e2e", "traefik")
    assert installation.has_keda()
    installation.dependencies()
    installation.taskflux()
    return installation


def test_everything_is_there_after_the_install(installed: Installation, kube: Kube) -> None:
    for rendering in (dependencies(), chart(K8S / "values-dev.yaml")):
        for each in rendering.objects:
            if not each.hooks:
                assert kube.get(each.kind, each.name)["metadata"]["name"] == each.name


def test_the_image_under_test_is_in_every_pod_that_is_taskfluxs(installed: Installation, kube: Kube) -> None:
    workloads = kube.get("deployments,cronjobs")["items"]
    named = {text for each in workloads for text in _images(each) if text.startswith("taskflux")}
    assert named == {installed.image}


def _images(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["image"]] if isinstance(value.get("image"), str) else []
        return own + [image for below in value.values() for image in _images(below)]
    if isinstance(value, list):
        return [image for below in value for image in _images(below)]
    return []


def test_kubectl_by_hand_applies_the_same_dependencies(installed: Installation, kube: Kube) -> None:
    said = kube.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-k", str(K8S / "dependencies")
    )
    assert len(said.splitlines()) == len(dependencies().objects)


@pytest.mark.parametrize("name", ["postgres", "kafka", "valkey", "mailpit", "msg91", "task-topic"])
def test_the_pod_of_a_dependency_is_let_in_and_refused_as_root(installed: Installation, kube: Kube, name: str) -> None:
    (owner,) = (each for each in dependencies().of("StatefulSet", "Deployment", "Job") if each.name == name)
    template = owner.spec["template"]
    # As the controller of a StatefulSet adds them.
    claims = [
        {"name": claim["metadata"]["name"], "emptyDir": {}} for claim in owner.spec.get("volumeClaimTemplates", ())
    ]
    spec = {**template["spec"], "volumes": [*template["spec"].get("volumes", ()), *claims]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name}-tried", "labels": template["metadata"]["labels"]},
        "spec": spec,
    }
    create = ("create", "--dry-run=server", "--validate=strict", "--filename=-")
    kube.kubectl(*create, stdin=json.dumps(pod))
    as_root = {**spec, "securityContext": {**spec["securityContext"], "runAsUser": 0}}
    with pytest.raises(Refused, match="violates PodSecurity"):
        kube.kubectl(*create, stdin=json.dumps({**pod, "spec": as_root}))


def test_an_upgrade_rolls_every_pod_and_can_be_done_again(installed: Installation, kube: Kube) -> None:
    installed.taskflux({"handlerDefaults.podAnnotations": {"example.org/rolled": "now"}})
    pods = kube.get("deployment", "taskflux-ingest")["spec"]["template"]["metadata"]
    assert pods["annotations"]["example.org/rolled"] == "now"


def test_it_can_be_removed_completely(installed: Installation, kube: Kube) -> None:
    installed.remove()
    assert NAMESPACE not in kube.kubectl("get", "namespaces", "--output=name")
