"""The push scaler: one trigger of the relays' in place of those that poll, and how KEDA reaches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from taskflux.upkeep.scaler import Queue
from tests.chart.cases import full, handler_container
from tests.chart.objects import Object
from tests.chart.rendering import Refused, Rendering
from tests.chart.strict import faults

PUSHED = ("process-email", "process-simulated", "process-sms", "router", "dlq-sink", "relay")
TLS = {"existingSecret": "scaler-tls", "clientCaKey": "clients.crt", "clientSecret": "keda-client"}


def pushed(*more: Mapping[str, Any], tls: Mapping[str, Any] | None = None) -> Rendering:
    return full({"keda": {"pushScaler": {"enabled": True, "tls": tls or {}}}}, *more)


def scaled(rendering: Rendering, handler: str) -> Object:
    found = rendering.handler("ScaledObject", handler)
    assert found is not None
    return found


def trigger(rendering: Rendering, handler: str, kind: str = "external-push") -> Mapping[str, Any]:
    (found,) = [each for each in scaled(rendering, handler).spec["triggers"] if each["type"] == kind]
    assert isinstance(found, Mapping)
    return found


@pytest.mark.usefixtures("definitions")
def test_every_object_is_valid() -> None:
    rendering = pushed(tls=TLS)
    assert [fault for each in rendering.objects for fault in faults(each, rendering)] == []


def test_by_default_keda_polls() -> None:
    assert not [each for each in full().of("Service") if each.name.endswith("-scaler")]
    for each in full().of("ScaledObject"):
        assert "external-push" not in {one["type"] for one in each.spec["triggers"]}


@pytest.mark.parametrize("handler", PUSHED)
def test_the_relay_understands_the_metadata_of_each_trigger(handler: str) -> None:
    assert Queue.parse(trigger(pushed(), handler)["metadata"])


def test_a_trigger_says_all_that_the_handler_is_scaled_by() -> None:
    metadata = trigger(pushed(), "process-email")["metadata"]
    assert metadata == {
        "scalerAddress": "tf-taskflux-relay-scaler.work.svc:8090",
        "taskType": "email",
        "topic": "tasks.email",
        "consumerGroup": "taskflux.email",
        "lagThreshold": "50",
        "runningThreshold": "10",
        "maxReplicas": "12",
    }
    assert trigger(pushed(), "relay")["metadata"]["dueThreshold"] == "2000"


@pytest.mark.parametrize("handler", PUSHED)
def test_postgresql_is_not_asked_by_keda(handler: str) -> None:
    assert "postgresql" not in {each["type"] for each in scaled(pushed(), handler).spec["triggers"]}
    assert not [each for each in pushed().of("TriggerAuthentication") if each.name.endswith("-postgres")]


def test_a_kafka_trigger_beside_wakes_one_pod_and_never_asks_for_a_second() -> None:
    """KEDA's fallback does not count failures of a relay that it cannot reach: the metric's name comes from there."""
    metadata = trigger(pushed(), "process-email", "kafka")["metadata"]
    assert (metadata["lagThreshold"], metadata["activationLagThreshold"]) == ("1000000000", "0")
    without = pushed({"keda": {"pushScaler": {"kafkaTrigger": False}}})
    assert {each["type"] for each in scaled(without, "process-email").spec["triggers"]} == {"external-push"}
    always = pushed({"handlers": {"process-email": {"scaling": {"minReplicas": 1}}}})
    assert {each["type"] for each in scaled(always, "process-email").spec["triggers"]} == {"external-push"}


@pytest.mark.parametrize("handler", PUSHED)
def test_without_a_fallback_keda_asks_for_the_metric_again_once_the_relay_is_there(handler: str) -> None:
    assert "fallback" not in scaled(pushed(), handler).spec


def test_a_provider_s_rate_counts_where_all_processes_share_it() -> None:
    rate = {"settings": {"smtp": {"rate": 12.5}}}
    assert trigger(pushed(rate), "process-email")["metadata"]["rate"] == "12.5"
    alone = pushed(rate, {"secrets": {"redis": {"existingSecret": ""}}})
    assert "rate" not in trigger(alone, "process-email")["metadata"]
    own = pushed({"handlers": {"process-simulated": {"scaling": {"rate": 3}}}})
    assert trigger(own, "process-simulated")["metadata"]["rate"] == "3"


def test_the_relays_have_a_headless_service_whose_port_their_pods_listen_on() -> None:
    rendering = pushed()
    service = rendering.one("Service", "tf-taskflux-relay-scaler")
    assert service.spec["clusterIP"] == "None"
    (port,) = service.spec["ports"]
    deployment = rendering.handler("Deployment", "relay")
    assert deployment is not None
    assert deployment.pod is not None
    assert service.spec["selector"].items() <= deployment.pod.labels.items()
    (container,) = deployment.pod.containers
    assert {"name": "scaler", "containerPort": port["port"], "protocol": "TCP"} in container["ports"]
    assert handler_container(rendering, "relay").environment["TASKFLUX_SCALER__PORT"] == str(port["port"])
    assert "TASKFLUX_SCALER__PORT" not in handler_container(rendering, "ingest").environment


def test_only_keda_s_namespace_reaches_the_port() -> None:
    policy = pushed().handler("NetworkPolicy", "relay")
    assert policy is not None
    (rule,) = [each for each in policy.spec["ingress"] if each["ports"][0]["port"] == 8090]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}]


def test_with_tls_both_sides_know_each_other() -> None:
    rendering = pushed(tls=TLS)
    environment = handler_container(rendering, "relay").environment
    assert environment["TASKFLUX_SCALER__TLS_CERT_FILE"] == "/etc/taskflux/scaler/tls.crt"
    assert environment["TASKFLUX_SCALER__TLS_CLIENT_CA_FILE"] == "/etc/taskflux/scaler/client-ca.crt"
    asked = trigger(rendering, "process-email")
    assert asked["metadata"]["enableTLS"] == "true"
    authentication = rendering.one("TriggerAuthentication", asked["authenticationRef"]["name"])
    assert {(each["parameter"], each["name"], each["key"]) for each in authentication.spec["secretTargetRef"]} == {
        ("caCert", "scaler-tls", "ca.crt"),
        ("tlsClientCert", "keda-client", "tls.crt"),
        ("tlsClientKey", "keda-client", "tls.key"),
    }


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"handlers": {"relay": {"enabled": False}}}, "no relay is deployed to serve it"),
        ({"keda": {"pushScaler": {"port": 8080}}}, "choose another"),
        ({"keda": {"pushScaler": {"tls": {"clientSecret": "keda"}}}}, "but no existingSecret"),
        ({"keda": {"pushScaler": {"tls": {"existingSecret": "tls", "clientSecret": "keda"}}}}, "belong together"),
    ],
)
def test_values_that_cannot_work_are_refused_with_a_sentence(values: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        pushed(values)
