"""Strimzi's custom resources: topics as `taskflux topics` makes them, and a user who may do what every handler does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from taskflux.stream.provision import topic_config
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import dead_letter_topic, task_topic
from taskflux.worker.loading import built_in_handlers
from taskflux.worker.settings import Settings
from tests.chart import deployments
from tests.chart.cases import full
from tests.chart.objects import Object
from tests.chart.rendering import Rendering
from tests.chart.strict import faults

GUIDE: Final = Path(__file__).parents[2] / "docs" / "guides" / "strimzi.md"
KAFKA: Final = {"securityProtocol": "SASL_SSL", "saslMechanism": "SCRAM-SHA-512", "saslUsername": "taskflux"}
MIXED: Final = "task-topic"


def strimzi(kafka: Mapping[str, Any], *more: Mapping[str, Any]) -> Rendering:
    return full(
        {
            "strimzi": {"cluster": "shop", "user": True},
            "setup": {"useHelmHooks": False},
            "settings": {"kafka": {**KAFKA, **kafka}},
            "secrets": {"kafka": {"existingSecret": "taskflux", "passwordKey": "password"}},
        },
        *more,
    )


def rules(rendering: Rendering) -> list[dict[str, Any]]:
    (user,) = rendering.of("KafkaUser")
    assert user.name == KAFKA["saslUsername"]
    found: list[dict[str, Any]] = user.spec["authorization"]["acls"]
    return found


def may(rendering: Rendering, kind: str, name: str) -> set[str]:
    """What the user may do with the topic or group of this name."""

    def meant(resource: Mapping[str, str]) -> bool:
        if resource["type"] != kind:
            return False
        return name.startswith(resource["name"]) if resource["patternType"] == "prefix" else name == resource["name"]

    return {each for rule in rules(rendering) if meant(rule["resource"]) for each in rule["operations"]}


@pytest.mark.parametrize(
    "kafka",
    [
        {},
        {"topicPrefix": "Shop_", "partitions": 24, "retentionHours": 36.5},
        {"deadLetterMaxBytes": 2_000_000, "replicationFactor": 3},
    ],
    ids=["defaults", "names and retention", "dead letters and replicas"],
)
def test_topics_are_those_that_the_program_would_create(kafka: Mapping[str, Any]) -> None:
    known = {re.sub("([A-Z])", r"_\1", name).lower(): value for name, value in kafka.items()}
    settings = KafkaSettings.model_validate(known)
    wanted = {task_topic(settings.topic_prefix, each.type) for each in built_in_handlers()}
    topics = {each.spec["topicName"]: each for each in strimzi(kafka).of("KafkaTopic")}
    assert topics.keys() == wanted | {dead_letter_topic(settings.topic_prefix)}
    for name, topic in topics.items():
        assert topic.labels["strimzi.io/cluster"] == "shop"
        assert topic.spec["partitions"] == settings.partitions
        assert topic.spec.get("replicas", -1) == settings.replication_factor
        assert {key: str(value) for key, value in topic.spec["config"].items()} == topic_config(settings, name)


def test_a_topic_has_the_partitions_that_its_handler_is_scaled_by() -> None:
    rendering = strimzi({}, {"handlers": {"process-email": {"scaling": {"partitions": 48, "maxReplicas": 48}}}})
    partitions = {each.name: each.spec["partitions"] for each in rendering.of("KafkaTopic")}
    assert partitions == {"tasks.email": 48, "tasks.sms": 12, "tasks.simulated": 12, "tasks.dlq": 12}


@pytest.mark.parametrize("prefix", ["", "shop-"])
def test_the_user_may_do_what_each_handler_does(prefix: str) -> None:
    rendering = strimzi({"topicPrefix": prefix})
    settings = Settings.model_validate({"kafka": {"topic_prefix": prefix}, "router": {"topic": MIXED}})
    for deployment in deployments.deployments(settings):
        if deployment.reads is not None:
            assert deployment.reads.topic
            assert {"Describe", "Read"} <= may(rendering, "topic", deployment.reads.topic), deployment.name
            assert deployment.reads.group
            assert {"Describe", "Read"} <= may(rendering, "group", deployment.reads.group), deployment.name
    for topic in (each.spec["topicName"] for each in rendering.of("KafkaTopic")):
        assert {"Create", "Describe", "Write"} <= may(rendering, "topic", topic)
    assert not may(rendering, "topic", "orders")
    assert not may(rendering, "group", "orders")
    assert "Write" not in may(rendering, "topic", MIXED)


def test_the_user_may_read_what_wakes_each_handler() -> None:
    orders = {"target": "shop.orders:read", "topic": "orders", "group": "orders-readers"}
    rendering = strimzi({}, {"handlers": {"import-orders": orders}})
    triggers = [each for scaled in rendering.of("ScaledObject") for each in scaled.spec["triggers"]]
    by_lag = [each["metadata"] for each in triggers if each["type"] == "kafka"]
    assert {"orders", MIXED, "tasks.dlq", "tasks.email"} <= {each["topic"] for each in by_lag}
    for each in by_lag:
        assert {"Describe", "Read"} <= may(rendering, "topic", each["topic"])
        assert {"Describe", "Read"} <= may(rendering, "group", each["consumerGroup"])


def test_the_rules_are_those_of_the_guide_which_a_real_kafka_is_tried_with() -> None:
    (user,) = (each for each in re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "KafkaUser" in each)
    guide = yaml.safe_load(user)["spec"]
    (made,) = strimzi({}, {"handlers": {"router": {"enabled": False}}}).of("KafkaUser")
    assert made.spec == guide


def test_without_a_cluster_there_are_none() -> None:
    assert not full().of("KafkaTopic", "KafkaUser")
    assert not strimzi({}, {"strimzi": {"topics": False}}).of("KafkaTopic")


def test_they_go_where_the_operators_watch_and_outlive_the_release() -> None:
    rendering = strimzi({}, {"strimzi": {"namespace": "kafka"}})
    for each in rendering.of("KafkaTopic", "KafkaUser"):
        assert each.metadata["namespace"] == "kafka"
        assert each.annotations["helm.sh/resource-policy"] == "keep"


FAULTS: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "a misspelt field of a topic": ("KafkaTopic", lambda d: d["spec"].update(partition=1), "partition"),
    "no replicas": ("KafkaTopic", lambda d: d["spec"].update(replicas=0), "minimum"),
    "an operation as it was before v1": (
        "KafkaUser",
        lambda d: d["spec"]["authorization"]["acls"][0].update(operation="Read"),
        "operation",
    ),
    "an operation that Kafka has not": (
        "KafkaUser",
        lambda d: d["spec"]["authorization"]["acls"][0]["operations"].append("Consume"),
        "Consume",
    ),
}


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_strict_definitions_find(fault: str) -> None:
    kind, spoil, said = FAULTS[fault]
    each = strimzi({"topicPrefix": "Shop_"}).of(kind)[0]
    assert not faults(each)
    document = deepcopy(dict(each.document))
    spoil(document)
    (found,) = faults(Object(document))
    assert said in found
