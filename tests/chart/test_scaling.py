"""KEDA's settings: each known problem of its Kafka scaler, and the setting that avoids it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.chart.cases import full
from tests.chart.objects import Object
from tests.chart.rendering import Rendering

BY_LAG = ("process-email", "process-simulated", "process-sms", "router", "dlq-sink")
BY_RUNNING = ("process-email", "process-simulated", "process-sms")


def scaled(rendering: Rendering, handler: str) -> Object:
    found = rendering.handler("ScaledObject", handler)
    assert found is not None, f"no ScaledObject belongs to {handler}"
    return found


def triggers(rendering: Rendering, handler: str, kind: str) -> Sequence[Mapping[str, Any]]:
    return [each for each in scaled(rendering, handler).spec["triggers"] if each["type"] == kind]


def one(rendering: Rendering, handler: str, kind: str) -> Mapping[str, Any]:
    (found,) = triggers(rendering, handler, kind)
    return found


@pytest.mark.parametrize("handler", BY_LAG)
def test_a_new_consumer_group_scales_up_from_zero(handler: str) -> None:
    """keda#5689, keda#7414: with "true" nothing wakes a group that has no offsets yet."""
    assert one(full(), handler, "kafka")["metadata"]["scaleToZeroOnInvalidOffset"] == "false"


@pytest.mark.parametrize("handler", BY_LAG)
def test_a_partition_without_a_commit_counts_from_its_start(handler: str) -> None:
    """keda#2033: `latest` shows a lag of one for ever."""
    assert one(full(), handler, "kafka")["metadata"]["offsetResetPolicy"] == "earliest"


@pytest.mark.parametrize("handler", BY_LAG)
def test_the_topic_is_always_named(handler: str) -> None:
    metadata = one(full(), handler, "kafka")["metadata"]
    assert metadata["topic"]
    assert metadata["consumerGroup"]
    assert metadata["bootstrapServers"] == "kafka:9092"


@pytest.mark.parametrize("handler", BY_LAG)
def test_a_slow_handler_s_lag_counts(handler: str) -> None:
    assert one(full(), handler, "kafka")["metadata"]["excludePersistentLag"] == "false"


@pytest.mark.parametrize("handler", BY_LAG)
def test_replicas_divide_the_partitions_so_that_no_pod_is_idle(handler: str) -> None:
    """keda#5096: a rebalance at every step."""
    metadata = one(full(), handler, "kafka")["metadata"]
    assert metadata["ensureEvenDistributionOfPartitions"] == "true"
    assert metadata["allowIdleConsumers"] == "false"
    assert "limitToPartitionsWithLag" not in metadata or metadata["limitToPartitionsWithLag"] == "false"


@pytest.mark.parametrize("handler", BY_LAG)
def test_nothing_is_scaled_to_zero_while_kafka_cannot_be_asked(handler: str) -> None:
    """keda#4098."""
    fallback = scaled(full(), handler).spec["fallback"]
    assert fallback == {"failureThreshold": 3, "replicas": 1, "behavior": "currentReplicasIfHigher"}


def test_where_only_cpu_scales_there_is_no_fallback_for_keda_to_refuse() -> None:
    """KEDA's webhook demands a trigger of type AverageValue for one."""
    for handler in ("ingest", "notify"):
        assert {each["type"] for each in scaled(full(), handler).spec["triggers"]} == {"cpu"}
        assert "fallback" not in scaled(full(), handler).spec


@pytest.mark.parametrize("handler", BY_LAG)
def test_pods_are_removed_after_five_idle_minutes(handler: str) -> None:
    spec = scaled(full(), handler).spec
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] == 300


@pytest.mark.parametrize("handler", BY_LAG)
def test_a_task_handler_scales_between_zero_and_its_partitions(handler: str) -> None:
    spec = scaled(full(), handler).spec
    assert spec["minReplicaCount"] == 0
    assert 1 <= spec["maxReplicaCount"] <= 12
    assert "idleReplicaCount" not in spec
    assert one(full(), handler, "kafka")["metadata"].get("activationLagThreshold", "0") == "0"


@pytest.mark.parametrize("handler", BY_LAG)
def test_its_own_values_reach_its_trigger(handler: str) -> None:
    values = {
        "lagThreshold": 7,
        "maxReplicas": 3,
        "pollingInterval": 11,
        "cooldownPeriod": 77,
        "fallbackReplicas": 2,
        "scaleDownStabilizationSeconds": 99,
    }
    rendering = full({"handlers": {handler: {"scaling": values}}})
    spec = scaled(rendering, handler).spec
    assert one(rendering, handler, "kafka")["metadata"]["lagThreshold"] == "7"
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 3)
    assert (spec["pollingInterval"], spec["cooldownPeriod"]) == (11, 77)
    assert spec["fallback"]["replicas"] == 2
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 99


def test_pods_stay_while_tasks_of_their_type_run() -> None:
    for handler in BY_RUNNING:
        trigger = one(full(), handler, "postgresql")
        assert "claims" in trigger["metadata"]["query"]
        assert float(trigger["metadata"]["targetQueryValue"]) > 0
        assert float(trigger["metadata"].get("activationTargetQueryValue", 0)) == 0
    for handler in ("router", "dlq-sink"):
        assert not triggers(full(), handler, "postgresql")


def test_the_relay_runs_always_and_keda_only_adds() -> None:
    rendering = full()
    assert scaled(rendering, "relay").spec["minReplicaCount"] >= 1
    assert [each["type"] for each in scaled(rendering, "relay").spec["triggers"]] == ["postgresql"]
    assert "due" in one(rendering, "relay", "postgresql")["metadata"]["query"]


def test_the_apis_scale_by_cpu_from_one_on() -> None:
    for handler in ("ingest", "notify"):
        assert scaled(full(), handler).spec["minReplicaCount"] == 1
        trigger = one(full(), handler, "cpu")
        assert trigger["metricType"] == "Utilization"
        assert trigger["metadata"] == {"value": "70"}


def test_the_apis_scale_by_requests_where_prometheus_is_named() -> None:
    url = "http://prometheus:9090"
    rendering = full(
        {
            "keda": {"prometheus": {"serverAddress": url}},
            "handlers": {"ingest": {"scaling": {"requestRate": 50, "cpuUtilization": 0}}},
        }
    )
    trigger = one(rendering, "ingest", "prometheus")
    assert trigger["metadata"]["serverAddress"] == url
    assert float(trigger["metadata"]["threshold"]) == 50
    assert not triggers(rendering, "ingest", "cpu")


def test_a_cpu_trigger_has_a_request_to_be_a_share_of() -> None:
    for each in full().of("ScaledObject"):
        if any(trigger["type"] == "cpu" for trigger in each.spec["triggers"]):
            deployment = full().one("Deployment", each.spec["scaleTargetRef"]["name"])
            assert deployment.pod is not None
            assert all("cpu" in one["resources"]["requests"] for one in deployment.pod.containers)


def test_extra_triggers_are_rendered_as_given() -> None:
    cron = {
        "type": "cron",
        "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 18 * * *", "desiredReplicas": "2"},
    }
    rendering = full({"handlers": {"process-email": {"scaling": {"extraTriggers": [cron]}}}})
    assert scaled(rendering, "process-email").spec["triggers"][-1] == cron


@pytest.mark.parametrize(
    ("mechanism", "sasl"),
    [("PLAIN", "plaintext"), ("SCRAM-SHA-256", "scram_sha256"), ("SCRAM-SHA-512", "scram_sha512")],
)
def test_keda_signs_in_to_kafka_as_the_handlers_do(mechanism: str, sasl: str) -> None:
    rendering = full(
        {
            "settings": {"kafka": {"securityProtocol": "SASL_SSL", "saslMechanism": mechanism}},
            "secrets": {
                "kafka": {
                    "existingSecret": "kafka-user",
                    "usernameKey": "user",
                    "passwordKey": "word",
                    "caKey": "ca.crt",
                }
            },
        }
    )
    for handler in BY_LAG:
        trigger = one(rendering, handler, "kafka")
        given = authenticated(rendering, trigger) | dict(trigger["metadata"])
        assert given["sasl"] == sasl
        assert given["tls"] == "enable"
        assert given["username"] == "kafka-user/user"
        assert given["password"] == "kafka-user/word"
        assert given["ca"] == "kafka-user/ca.crt"
        assert "cert" not in given


def test_keda_signs_in_by_a_name_that_is_a_setting() -> None:
    rendering = full(
        {
            "settings": {"kafka": {"securityProtocol": "SASL_SSL", "saslUsername": "taskflux"}},
            "secrets": {"kafka": {"existingSecret": "kafka-user", "passwordKey": "password"}},
        }
    )
    given = authenticated(rendering, one(rendering, "process-email", "kafka"))
    name, _, key = given["username"].partition("/")
    assert rendering.one("ConfigMap", name).data[key] == "taskflux"
    assert given["password"] == "kafka-user/password"


def test_keda_counts_with_a_dsn_of_its_own_where_there_is_one() -> None:
    rendering = full({"secrets": {"postgres": {"kedaDsnKey": "reader"}}})
    for handler in (*BY_RUNNING, "relay"):
        given = authenticated(rendering, one(rendering, handler, "postgresql"))
        assert given == {"connection": "postgres/reader"}
    trigger = one(full(), "relay", "postgresql")
    assert authenticated(full(), trigger) == {"connection": "postgres/dsn"}


def test_a_topic_with_more_partitions_than_the_others_takes_more_pods() -> None:
    rendering = full({"handlers": {"process-email": {"scaling": {"maxReplicas": 24, "partitions": 24}}}})
    assert scaled(rendering, "process-email").spec["maxReplicaCount"] == 24


def test_keda_shows_kafka_the_handlers_certificate() -> None:
    keys = {"caKey": "ca.crt", "certKey": "tls.crt", "keyKey": "tls.key"}
    rendering = full(
        {
            "settings": {"kafka": {"securityProtocol": "SSL"}},
            "secrets": {"kafka": {"existingSecret": "kafka-tls", **keys}},
        }
    )
    trigger = one(rendering, "process-email", "kafka")
    given = authenticated(rendering, trigger) | dict(trigger["metadata"])
    assert given["tls"] == "enable"
    assert (given["ca"], given["cert"], given["key"]) == ("kafka-tls/ca.crt", "kafka-tls/tls.crt", "kafka-tls/tls.key")
    assert given.get("sasl", "none") == "none"


def test_keda_verifies_kafka_by_the_ca_that_stands_in_a_secret_of_its_own() -> None:
    rendering = full(
        {
            "settings": {"kafka": {"securityProtocol": "SASL_SSL", "saslUsername": "taskflux"}},
            "secrets": {
                "kafka": {"existingSecret": "taskflux", "passwordKey": "password", "caSecret": "shop-cluster-ca-cert"}
            },
        }
    )
    given = authenticated(rendering, one(rendering, "process-email", "kafka"))
    assert (given["ca"], given["password"]) == ("shop-cluster-ca-cert/ca.crt", "taskflux/password")


def test_keda_needs_no_more_than_a_ca_for_a_kafka_without_logins() -> None:
    secrets = {"kafka": {"caSecret": "kafka-ca", "caKey": "root.pem"}}
    rendering = full({"settings": {"kafka": {"securityProtocol": "SSL"}}, "secrets": secrets})
    assert authenticated(rendering, one(rendering, "process-email", "kafka")) == {"ca": "kafka-ca/root.pem"}


def test_without_tls_or_sasl_keda_asks_for_neither() -> None:
    trigger = one(full(), "process-email", "kafka")
    given = authenticated(full(), trigger) | dict(trigger["metadata"])
    assert given.get("sasl", "none") == "none"
    assert given.get("tls", "disable") == "disable"


def authenticated(rendering: Rendering, trigger: Mapping[str, Any]) -> dict[str, str]:
    """What a TriggerAuthentication adds: parameter → secret/key."""
    if "authenticationRef" not in trigger:
        return {}
    authentication = rendering.one("TriggerAuthentication", trigger["authenticationRef"]["name"])
    sources = [*authentication.spec.get("secretTargetRef", []), *authentication.spec.get("configMapTargetRef", [])]
    return {each["parameter"]: f"{each['name']}/{each['key']}" for each in sources}
