"""Where pods run, what they are made from, and how they are replaced: what values say for all, or for one handler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from taskflux.worker.loading import BUILT_IN
from tests.chart.cases import full, handler_container, least
from tests.chart.objects import PodTemplate, pods


def test_pods_are_spread_over_nodes_by_their_own_labels() -> None:
    for deployment in full().of("Deployment"):
        pod = deployment.pod
        assert pod is not None
        (spread,) = pod.spec["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname"
        assert spread["labelSelector"] == deployment.spec["selector"]


def test_a_custom_spread_constraint_keeps_its_selector() -> None:
    own = {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    chosen = own | {"labelSelector": {"matchLabels": {"team": "mail"}}}
    deployment = one("process-email", {"topologySpreadConstraints": [own, chosen]})
    filled, kept = deployment.spec["topologySpreadConstraints"]
    # By the revision too: during a rollout the old pods would otherwise count against the new ones.
    mine = {"labelSelector": deployment.owner.spec["selector"], "matchLabelKeys": ["pod-template-hash"]}
    assert filled == own | mine
    assert kept == chosen


def one(handler: str, values: Mapping[str, Any]) -> PodTemplate:
    """A handler's pod with values of its own."""
    deployment = full({"handlers": {handler: values}}).handler("Deployment", handler)
    assert deployment is not None
    assert deployment.pod is not None
    return deployment.pod


def test_placement_can_be_set_for_each_handler() -> None:
    affinity: Mapping[str, Any] = {"nodeAffinity": {}}
    tolerations = [{"key": "spot", "operator": "Exists"}]
    pod = one(
        "process-email",
        {
            "nodeSelector": {"disk": "ssd"},
            "tolerations": tolerations,
            "affinity": affinity,
            "priorityClassName": "high",
            "runtimeClassName": "gvisor",
            "annotations": {"on": "deployment"},
            "podAnnotations": {"on": "pod"},
            "podLabels": {"team": "mail"},
            "revisionHistoryLimit": 7,
        },
    )
    assert pod.spec["nodeSelector"] == {"disk": "ssd"}
    assert pod.spec["tolerations"] == tolerations
    assert pod.spec["affinity"] == affinity
    assert (pod.spec["priorityClassName"], pod.spec["runtimeClassName"]) == ("high", "gvisor")
    assert pod.owner.annotations["on"] == "deployment"
    assert pod.annotations["on"] == "pod"
    assert pod.labels["team"] == "mail"
    assert pod.owner.spec["revisionHistoryLimit"] == 7


def test_extra_environment_and_volumes_are_added_to_the_chart_s_own() -> None:
    pod = one(
        "process-email",
        {
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
            "extraEnvFrom": [{"secretRef": {"name": "more"}}],
            "extraVolumes": [{"name": "certificates", "configMap": {"name": "certificates"}}],
            "extraVolumeMounts": [{"name": "certificates", "mountPath": "/certificates", "readOnly": True}],
        },
    )
    (container,) = pod.containers
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in container["env"]
    assert {"secretRef": {"name": "more"}} in container["envFrom"]
    assert any("configMapRef" in each for each in container["envFrom"])
    assert {"name": "certificates", "mountPath": "/certificates", "readOnly": True} in container["volumeMounts"]
    assert {"name": "certificates", "configMap": {"name": "certificates"}} in pod.spec["volumes"]
    assert any(each["mountPath"] == "/tmp" for each in container["volumeMounts"])


def test_what_a_pod_and_its_deployment_take_is_passed_on() -> None:
    proxy = {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"}
    sidecar = {"name": "shipper", "image": "shipper:1"}
    aliases = [{"ip": "192.0.2.1", "hostnames": ["mail.example.com"]}]
    dns = {"options": [{"name": "ndots", "value": "2"}]}
    hook = {"preStop": {"sleep": {"seconds": 3}}}
    pod = one(
        "process-email",
        {
            "initContainers": [proxy],
            "extraContainers": [sidecar],
            "lifecycle": hook,
            "hostAliases": aliases,
            "dnsConfig": dns,
            "schedulerName": "bin-packing",
            "minReadySeconds": 20,
            "progressDeadlineSeconds": 900,
        },
    )
    assert pod.init_containers == [proxy]
    own, other = pod.containers
    assert (own["name"], own["lifecycle"], other) == ("taskflux", hook, sidecar)
    assert (pod.spec["hostAliases"], pod.spec["dnsConfig"]) == (aliases, dns)
    assert pod.spec["schedulerName"] == "bin-packing"
    assert (pod.owner.spec["minReadySeconds"], pod.owner.spec["progressDeadlineSeconds"]) == (20, 900)


def test_jobs_resolve_and_are_scheduled_like_handlers_but_run_no_sidecar() -> None:
    """A container that does not end would keep a Job from ending."""
    defaults = {
        "schedulerName": "bin-packing",
        "dnsConfig": {"searches": ["example.com"]},
        "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["db.example.com"]}],
        "extraContainers": [{"name": "shipper", "image": "shipper:1"}],
        "initContainers": [{"name": "proxy", "image": "proxy:1"}],
    }
    for pod in pods(full({"handlerDefaults": defaults}).objects):
        assert pod.spec["schedulerName"] == "bin-packing", str(pod)
        assert pod.spec["dnsConfig"] == {"searches": ["example.com"]}, str(pod)
        assert pod.spec["hostAliases"] == defaults["hostAliases"], str(pod)
        names = {container["name"] for container in pod.all_containers}
        assert ({"shipper", "proxy"} <= names) == (pod.owner.kind == "Deployment"), str(pod)


def test_variables_of_one_handler_are_merged_with_the_defaults_by_name() -> None:
    defaults = [{"name": "TZ", "value": "UTC"}, {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]
    rendering = full(
        {
            "handlerDefaults": {"extraEnv": defaults},
            "handlers": {"process-email": {"extraEnv": [{"name": "TZ", "value": "Asia/Kolkata"}]}},
        }
    )
    email, sms = (handler_container(rendering, name).environment for name in ("process-email", "process-sms"))
    assert (email["TZ"], email["HTTPS_PROXY"]) == ("Asia/Kolkata", "http://proxy:3128")
    assert (sms["TZ"], sms["HTTPS_PROXY"]) == ("UTC", "http://proxy:3128")
    pod = rendering.handler("Deployment", "process-email")
    assert pod is not None
    assert pod.pod is not None
    names = [each["name"] for each in pod.pod.containers[0]["env"]]
    assert len(names) == len(set(names)), "the API server accepts a name only once"


@pytest.mark.parametrize("automount", [True, False])
def test_a_token_is_mounted_only_where_it_is_asked_for(automount: bool) -> None:
    rendering = full({"serviceAccount": {"automount": automount}})
    for account in rendering.of("ServiceAccount"):
        assert account.document["automountServiceAccountToken"] is automount
    for pod in pods(rendering.objects):
        assert pod.spec["automountServiceAccountToken"] is automount, str(pod)


def test_values_of_one_handler_do_not_affect_another() -> None:
    """Values that a template merges in place would show up in the handlers that come after."""
    values = {
        "podLabels": {"team": "mail"},
        "extraEnv": [{"name": "ONLY", "value": "here"}],
        "nodeSelector": {"a": "b"},
    }
    rendering = full({"handlers": {"dlq-sink": values}})
    for each in rendering.of("Deployment"):
        if each.component == "dlq-sink":
            continue
        before = full().one("Deployment", each.name)
        assert each.document == before.document


def test_the_defaults_reach_every_handler_and_its_own_values_win() -> None:
    rendering = full(
        {
            "handlerDefaults": {"priorityClassName": "usual", "resources": {"limits": {"memory": "333Mi"}}},
            "handlers": {"relay": {"priorityClassName": "high"}},
        }
    )
    for each in rendering.of("Deployment"):
        assert each.pod is not None
        assert each.pod.spec["priorityClassName"] == ("high" if each.component == "relay" else "usual")


def test_commands_are_the_handlers_names_and_what_is_added() -> None:
    pod = one("router", {"extraArgs": ["--topic", "other"]})
    assert "command" not in pod.containers[0]
    assert pod.containers[0]["args"] == ["run", "router", "--topic", "other"]


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, "ghcr.io/taskflux/taskflux:{version}"),
        ({"tag": "1.2.3"}, "ghcr.io/taskflux/taskflux:1.2.3"),
        ({"registry": "registry.example.com:5000"}, "registry.example.com:5000/taskflux/taskflux:{version}"),
        ({"registry": ""}, "taskflux/taskflux:{version}"),
        ({"digest": "sha256:" + "0" * 64, "tag": "1.2.3"}, "ghcr.io/taskflux/taskflux@sha256:" + "0" * 64),
        ({"repository": "us/flux"}, "ghcr.io/us/flux:{version}"),
    ],
)
def test_an_image_is_put_together_from_its_parts(image: Mapping[str, str], reference: str) -> None:
    version = full().of("Deployment")[0].labels["app.kubernetes.io/version"]
    for pod in pods(full({"image": image}).objects):
        for container in pod.all_containers:
            assert container["image"] == reference.format(version=version), str(pod)


def test_a_handler_s_own_image_takes_the_rest_from_the_chart_s() -> None:
    pod = one("process-sms", {"image": {"tag": "own", "pullPolicy": "Always"}})
    assert pod.containers[0]["image"] == "ghcr.io/taskflux/taskflux:own"
    assert pod.containers[0]["imagePullPolicy"] == "Always"


def test_every_pod_pulls_with_the_secrets_that_are_named() -> None:
    """By name, and as a pod has them: charts do either."""
    for pod in pods(full({"imagePullSecrets": ["registry", {"name": "mirror"}]}).objects):
        assert pod.spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}], str(pod)


def test_labels_and_annotations_for_all_are_on_all() -> None:
    rendering = full({"commonLabels": {"team": "mail"}, "commonAnnotations": {"owner": "ada"}})
    for each in rendering.objects:
        assert each.labels["team"] == "mail", str(each)
        assert each.annotations["owner"] == "ada", str(each)
    for pod in pods(rendering.objects):
        assert pod.labels["team"] == "mail", str(pod)


def test_pods_are_replaced_when_their_settings_change() -> None:
    """A ConfigMap's change alone restarts nothing."""

    def annotations(rendering: Any) -> dict[str, Mapping[str, str]]:
        return {each.name: each.pod.annotations for each in rendering.of("Deployment")}

    before, after = annotations(least()), annotations(least({"settings": {"log": {"level": "DEBUG"}}}))
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


def test_a_rollout_removes_no_pod_before_its_successor_is_ready() -> None:
    for deployment in full().of("Deployment"):
        strategy = deployment.spec["strategy"]
        assert strategy["type"] == "RollingUpdate"
        assert strategy["rollingUpdate"]["maxUnavailable"] == 0


def test_a_pod_behind_a_service_keeps_answering_while_its_endpoint_is_removed() -> None:
    rendering = full({"handlerDefaults": {"lingerSeconds": 7}})
    for handler in BUILT_IN:
        lingers = handler_container(rendering, handler).environment.get("TASKFLUX_HTTP__LINGER_SECONDS")
        assert lingers == ("7" if handler in ("ingest", "notify") else None), handler
