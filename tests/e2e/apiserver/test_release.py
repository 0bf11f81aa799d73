"""The chart's life cycle in a namespace that enforces restricted Pod Security: no extra object, none left behind."""

from __future__ import annotations

import json
import time

import pytest

from tests.chart.objects import Object
from tests.chart.rendering import CHART, Rendering
from tests.e2e.apiserver.cluster import Cluster, Inventory
from tests.e2e.apiserver.release import Release, lasting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OWN = "resize-image"
DROPPED = "process-sms"
CHANGED_VALUES = {
    "image": {"tag": "0.1.1-changed", "digest": ""},  # a digest would win over the tag
    "handlers": {
        DROPPED: {"enabled": False},
        OWN: {
            "target": "my_app.handlers:resize_image",
            "taskType": OWN,
            "image": {"registry": "registry.example.com", "repository": "my-app", "tag": "1.4", "digest": ""},
        },
    },
}


WITHOUT_HOOKS = {"setup": {"useHelmHooks": False}}


@pytest.fixture(params=["default", "production", "default without hooks"])
def release(request: pytest.FixtureRequest, cluster: Cluster, namespace: str) -> Release:
    name, _, hookless = request.param.partition(" ")
    always = WITHOUT_HOOKS if hookless else {}
    return Release(cluster, namespace, CHART / "ci" / f"{name}-values.yaml", always=always)


def test_a_release_is_installed_tested_changed_rolled_back_and_removed_completely(release: Release) -> None:
    first, changed = release.rendering(), release.rendering(CHANGED_VALUES)

    # The API server warns of templates whose pods it would refuse, and of versions and fields that are going.
    assert release.install().warnings == ""
    installed = release.made()
    assert_it_is_as_rendered(release, first)
    assert_hooks_ran(release, first, "pre-install", "post-install")
    assert_tests_pass(release, first)

    assert release.upgrade(CHANGED_VALUES).warnings == ""
    upgraded = release.made()
    assert_it_is_as_rendered(release, changed)
    assert_hooks_ran(release, changed, "pre-upgrade", "post-upgrade")
    assert_only_what_was_rendered_anew_is_touched(first, changed, installed, upgraded)
    assert_handlers_came_and_went(changed, upgraded)
    assert_tests_pass(release, changed)

    release.rollback(1)
    assert_it_is_as_rendered(release, first)
    assert set(release.made()) == set(installed)

    release.uninstall()
    assert_nothing_is_left(release)


def assert_it_is_as_rendered(release: Release, rendering: Rendering) -> None:
    """Exactly the objects of `helm template`, each field as rendered; every Deployment has its pods."""
    made = release.made()
    assert set(made) == {(each.kind, each.name) for each in lasting(rendering)}
    assert release.differs(rendering) == ""
    deployments = [each for each in made.values() if each.kind == "Deployment"]
    assert deployments
    for each in deployments:
        status, replicas = each.document["status"], each.spec["replicas"]
        found = (status["observedGeneration"], status.get("updatedReplicas"), status.get("availableReplicas"))
        assert found == (each.metadata["generation"], replicas, replicas), each


def assert_hooks_ran(release: Release, rendering: Rendering, *moments: str) -> None:
    """The hooks of these moments succeeded; none is left behind (`assert_it_is_as_rendered` has seen that)."""
    expected = {each.name for each in rendering.objects if each.hooks & set(moments)}
    if not expected:  # then the Jobs are the release's own, and have ended well
        jobs = release.cluster.inventory(release.namespace)
        names = {each.name for each in rendering.of("Job")}
        assert names, f"the chart has neither a hook for {moments} nor a Job"
        ended = {each.name: each.document["status"].get("succeeded") for each in jobs.values() if each.name in names}
        assert ended == dict.fromkeys(names, 1)
    phases = release.hooks()
    assert {name: phases.get(name) for name in expected} == dict.fromkeys(expected, "Succeeded")


def assert_tests_pass(release: Release, rendering: Rendering) -> None:
    """Every test pod ends well; helm would fail otherwise, and says nothing of a pod that it did not run."""
    tests = {each.name for each in rendering.objects if "test" in each.hooks}
    assert tests
    release.test()
    phases = release.hooks()
    assert {name: phases.get(name) for name in tests} == dict.fromkeys(tests, "Succeeded")


def assert_only_what_was_rendered_anew_is_touched(
    first: Rendering, changed: Rendering, installed: Inventory, upgraded: Inventory
) -> None:
    """An object that is rendered as before is the same one, with the same generation; a changed one is in its place."""
    before, after = ({(each.kind, each.name): each for each in lasting(rendering)} for rendering in (first, changed))
    stayed = before.keys() & after.keys()
    same = {key for key in stayed if before[key].document == after[key].document}
    assert same
    assert same != stayed
    for key in stayed:
        assert installed[key].metadata["uid"] == upgraded[key].metadata["uid"], key
        if key in same:
            assert installed[key].metadata.get("generation") == upgraded[key].metadata.get("generation"), key


def assert_handlers_came_and_went(changed: Rendering, upgraded: Inventory) -> None:
    """The own handler runs from its own image, the others from the new tag; nothing is there of the dropped one."""
    deployments = [each for each in upgraded.values() if each.kind == "Deployment"]
    images = {each.component: _images(each) for each in deployments}
    assert images.pop(OWN) == {"registry.example.com/my-app:1.4"}
    assert images
    assert all(image.endswith(":0.1.1-changed") for found in images.values() for image in found), images
    components = {each.component for each in upgraded.values()}
    assert OWN in components
    assert DROPPED not in components


def assert_nothing_is_left(release: Release) -> None:
    """The namespace is what it was before, helm's own records and what was to be garbage collected included."""
    deadline = time.monotonic() + 30
    while (left := set(release.cluster.inventory(release.namespace))) != set(release.before):
        assert time.monotonic() < deadline, left - set(release.before)
    assert release.cluster.everywhere(f"app.kubernetes.io/instance={release.name}") == {}


def _images(deployment: Object) -> set[str]:
    assert deployment.pod is not None
    return {container["image"] for container in deployment.pod.containers}


def test_what_is_templated_without_hooks_can_be_applied_by_hand_again_and_again(
    cluster: Cluster, namespace: str
) -> None:
    """`helm template --skip-tests | kubectl apply`, as tools do that know no hooks."""
    release = Release(cluster, namespace, CHART / "ci" / "default-values.yaml", always=WITHOUT_HOOKS)
    here = f"--namespace={namespace}"

    def apply(rendering: Rendering) -> Inventory:
        assert not [each for each in lasting(rendering) if each.hooks]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [each.document for each in lasting(rendering)]})
        cluster.kubectl("apply", here, "--filename=-", stdin=text)
        cluster.kubectl("wait", "--for=condition=Complete", "jobs", "--all", here, "--timeout=120s")
        cluster.kubectl("wait", "--for=condition=Available", "deployments", "--all", here, "--timeout=120s")
        return release.made()

    first = apply(release.rendering())
    again = apply(release.rendering())
    assert first.keys() == again.keys()
    for key, each in first.items():
        assert again[key].metadata["uid"] == each.metadata["uid"], key
        assert again[key].metadata.get("generation") == each.metadata.get("generation"), key
    # Another image is another Job, which is refused under the name of the one before.
    changed = apply(release.rendering({"image": {"tag": "0.1.1-changed", "digest": ""}}))
    jobs = {name for kind, name in changed if kind == "Job"}
    assert len(jobs) == 2
    assert jobs > {name for kind, name in first if kind == "Job"}
