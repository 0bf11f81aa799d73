"""Allowed connections: what the NetworkPolicies of a release permit together, as a cluster evaluates them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from taskflux.worker.loading import BUILT_IN, load
from taskflux.worker.settings import Settings
from tests.chart import deployments
from tests.chart.cases import EACH_CI_FILE, full, least, stand_ins
from tests.chart.containers import Container, containers
from tests.chart.objects import Object, PodTemplate, pods, selects
from tests.chart.rendering import Rendering, Values, load_values, render

DNS, POSTGRES, KAFKA, REDIS, OTEL = 53, 5432, 9092, 6379, 4318


def policies(rendering: Rendering, pod: PodTemplate) -> Sequence[Object]:
    """The policies that select a pod; before an install only those that are hooks themselves exist."""
    moments = pod.owner.hooks - {"test"}
    return [
        each
        for each in rendering.of("NetworkPolicy")
        if selects(each.spec["podSelector"], pod.labels) and (not moments or each.hooks & moments or not each.hooks)
    ]


def rules(rendering: Rendering, pod: PodTemplate, direction: str) -> Iterator[Mapping[str, Any]]:
    for each in policies(rendering, pod):
        yield from each.spec.get(direction) or []


def open_to(
    rendering: Rendering, pod: PodTemplate, port: int, direction: str = "egress", protocol: str = "TCP"
) -> bool:
    """Whether some rule allows the pod to connect to this port, to any peer."""
    return any(opens(rule, rendering, pod, port, direction, protocol) for rule in rules(rendering, pod, direction))


def opens(
    rule: Mapping[str, Any], rendering: Rendering, pod: PodTemplate, port: int, direction: str, protocol: str = "TCP"
) -> bool:
    if not rule.get("ports"):
        return True
    called = [pod]
    if direction == "egress":
        called = [other for peer in rule.get("to") or [] for other in _pods(peer, rendering)]
    return any(_is(each, port, protocol, called) for each in rule["ports"])


def _pods(peer: Mapping[str, Any], rendering: Rendering) -> Sequence[PodTemplate]:
    if "podSelector" not in peer:
        return []
    return [pod for pod in pods(rendering.objects) if selects(peer["podSelector"], pod.labels)]


def _is(given: Mapping[str, Any], port: int, protocol: str, called: Sequence[PodTemplate]) -> bool:
    """A name is a port of the pods that are called."""
    if given.get("protocol", "TCP") != protocol:
        return False
    if "port" not in given:
        return True
    if isinstance(given["port"], str):
        return any(
            each["name"] == given["port"] and each["containerPort"] == port
            for pod in called
            for container in pod.containers
            for each in container.get("ports") or []
        )
    return bool(given["port"] <= port <= given.get("endPort", given["port"]))


def of(rendering: Rendering, handler: str) -> PodTemplate:
    deployment = rendering.handler("Deployment", handler)
    assert deployment is not None
    assert deployment.pod is not None
    return deployment.pod


@EACH_CI_FILE
def test_what_is_not_allowed_to_a_pod_of_the_release_is_denied(ci: Path) -> None:
    rendering = render(ci)
    for pod in pods(rendering.objects) if rendering.of("NetworkPolicy") else []:
        ruled = {kind for each in policies(rendering, pod) for kind in each.spec["policyTypes"]}
        assert ruled == {"Ingress", "Egress"}, str(pod)
        # A hook that runs before the policies exist has its own.
        if pod.owner.hooks - {"test"}:
            own = [each for each in policies(rendering, pod) if each.hooks & pod.owner.hooks]
            assert {kind for each in own for kind in each.spec["policyTypes"]} == {"Ingress", "Egress"}, str(pod)


@EACH_CI_FILE
def test_a_pod_without_a_policy_of_its_own_is_denied_everything(ci: Path) -> None:
    rendering = render(ci)
    everybody = {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
    denying = [
        each
        for each in rendering.of("NetworkPolicy")
        if each.spec["podSelector"].get("matchLabels", {}).keys() == everybody and not each.hooks
    ]
    if load_values(ci).get("networkPolicy", {}).get("enabled", True):
        (each,) = denying
        assert set(each.spec["policyTypes"]) == {"Ingress", "Egress"}
        assert not each.spec.get("ingress")
        assert not each.spec.get("egress")
        assert all(each in policies(rendering, pod) for pod in pods(rendering.objects))
    else:
        assert not denying


@EACH_CI_FILE
def test_every_pod_may_query_dns_over_udp_and_tcp(ci: Path) -> None:
    rendering = render(ci)
    for pod in pods(rendering.objects) if rendering.of("NetworkPolicy") else []:
        assert open_to(rendering, pod, DNS, protocol="UDP"), str(pod)
        assert open_to(rendering, pod, DNS, protocol="TCP"), str(pod)


@EACH_CI_FILE
def test_every_pod_may_reach_each_server_that_its_environment_names(ci: Path) -> None:
    rendering = render(ci)
    for pod in pods(rendering.objects) if rendering.of("NetworkPolicy") else []:
        for container in containers(pod, rendering, stand_ins(rendering)):
            for name, port in destinations(container, load_values(ci)):
                assert open_to(rendering, pod, port), f"{pod}: {name} leads to port {port}"


def destinations(container: Container, values: Values) -> Iterator[tuple[str, int]]:
    """The ports that it connects to. Those of PostgreSQL and Redis stand in Secrets, and in the values once more."""
    said = values.get("networkPolicy", {})
    environment = container.environment
    brokers = environment.get("TASKFLUX_KAFKA__BOOTSTRAP_SERVERS", "") if speaks_to_kafka(container.args) else ""
    for broker in filter(None, brokers.split(",")):
        yield "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS", int(broker.strip().rpartition(":")[2])
    for section, name, usual in (
        ("postgres", "TASKFLUX_POSTGRES__DSN", POSTGRES),
        ("redis", "TASKFLUX_REDIS__URL", REDIS),
    ):
        if name in environment:
            yield name, said.get(section, {}).get("port", usual)
    for name in ("TASKFLUX_MSG91__BASE_URL", "TASKFLUX_OTEL__ENDPOINT"):
        if url := environment.get(name):
            parts = urlsplit(url)
            yield name, parts.port or {"http": 80, "https": 443}[parts.scheme]


def speaks_to_kafka(args: Sequence[str]) -> bool:
    """Every pod has the settings of all providers in its environment."""
    if args[0] == "run":
        return "kafka" in deployments.deployment(load(args[1]), Settings()).needs if ":" not in args[1] else True
    return args[0] == "topics"


def test_a_handler_reaches_its_own_provider_and_no_other() -> None:
    rendering = full()
    reached = {
        handler: {port for port in (25, 80, 443, 465, 587, 2525) if open_to(rendering, of(rendering, handler), port)}
        for handler in BUILT_IN
    }
    assert reached.pop("process-email") == {587}
    assert reached.pop("process-sms") == {443}
    assert reached.pop("notify") == {443, 587}
    assert not any(reached.values()), reached


@pytest.mark.parametrize(
    ("smtp", "port"), [({"tls": "implicit"}, 465), ({"tls": "none"}, 25), ({"port": 2525}, 2525), ({}, 587)]
)
def test_the_mail_server_is_reached_at_its_own_port(smtp: Mapping[str, Any], port: int) -> None:
    rendering = full({"settings": {"smtp": smtp}})
    for handler in ("process-email", "notify"):
        assert open_to(rendering, of(rendering, handler), port)
        assert port == 587 or not open_to(rendering, of(rendering, handler), 587)


@pytest.mark.parametrize(
    ("url", "port"),
    [("http://msg91.internal", 80), ("https://msg91.internal:8443/v5", 8443), ("https://a.example", 443)],
)
def test_msg91_is_reached_at_its_own_port(url: str, port: int) -> None:
    rendering = full({"settings": {"msg91": {"baseUrl": url}}})
    assert open_to(rendering, of(rendering, "process-sms"), port)


def test_brokers_are_reached_at_each_of_their_ports() -> None:
    rendering = full({"settings": {"kafka": {"bootstrapServers": "a:9093, b:9094,c:9095"}}})
    assert all(open_to(rendering, of(rendering, "relay"), port) for port in (9093, 9094, 9095))
    assert not open_to(rendering, of(rendering, "relay"), 9092)
    fixed = full({"settings": {"kafka": {"bootstrapServers": "a:9093"}}, "networkPolicy": {"kafka": {"port": 9999}}})
    assert open_to(fixed, of(fixed, "relay"), 9999)


def test_no_rule_opens_every_port() -> None:
    rendering = full()
    for pod in pods(rendering.objects):
        for direction in ("egress", "ingress"):
            assert not open_to(rendering, pod, 31337, direction), str(pod)


def test_the_servers_are_those_that_the_values_name() -> None:
    there = [{"ipBlock": {"cidr": "10.1.2.0/24"}}]
    rendering = full(
        {
            "networkPolicy": {
                "postgres": {"port": 6432, "to": there},
                "redis": {"port": 6380, "to": there},
                "kafka": {"port": 9092, "to": there},
            }
        }
    )
    pod = of(rendering, "process-simulated")
    assert open_to(rendering, pod, 6432)
    assert not open_to(rendering, pod, POSTGRES)
    for port in (6432, 6380, 9092):
        (rule,) = (each for each in rules(rendering, pod, "egress") if opens(each, rendering, pod, port, "egress"))
        assert rule["to"] == there


def test_egress_for_traces_is_allowed_only_with_a_receiver() -> None:
    assert not open_to(full(), of(full(), "relay"), OTEL)
    rendering = full({"settings": {"otel": {"endpoint": "http://collector:4318"}}})
    assert open_to(rendering, of(rendering, "relay"), OTEL)


def test_custom_egress_rules_are_added() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 2525, "protocol": "TCP"}]}
    rendering = full({"handlers": {"process-email": {"egress": [rule]}}})
    assert rule in list(rules(rendering, of(rendering, "process-email"), "egress"))
    assert not open_to(rendering, of(rendering, "process-sms"), 2525)


RELEASE = {"app.kubernetes.io/name", "app.kubernetes.io/instance"}


def callers(rendering: Rendering, handler: str, port: int = 8080) -> list[Mapping[str, Any]]:
    """Who may call a port, besides the release's own pods, by the policies; also checks that callers are named."""
    pod = of(rendering, handler)
    found = [rule for rule in rules(rendering, pod, "ingress") if opens(rule, rendering, pod, port, "ingress")]
    assert found
    assert all(rule.get("from") for rule in found), "a rule without `from` lets everybody in"
    peers = [peer for rule in found for peer in rule["from"]]
    return [peer for peer in peers if (peer.get("podSelector") or {}).get("matchLabels", {}).keys() != RELEASE]


def test_only_the_named_callers_may_submit_tasks() -> None:
    somebody = [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}]
    assert callers(full({"networkPolicy": {"apiFrom": somebody}}), "ingest") == somebody
    own = {"handlers": {"mine": {"target": "a.b:c", "service": {"enabled": True}, "scaling": {"enabled": False}}}}
    assert callers(full(own, {"networkPolicy": {"apiFrom": somebody}}), "mine") == somebody


def test_notify_is_called_by_the_releases_namespace_unless_others_are_named() -> None:
    somebody = [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}]
    assert callers(full({"networkPolicy": {"apiFrom": somebody}}), "notify") == [{"podSelector": {}}]
    assert callers(full({"networkPolicy": {"notifyFrom": somebody}}), "notify") == somebody
    assert callers(full({"networkPolicy": {"notifyFrom": []}}), "notify") == []


MANAGEMENT = {"ingest": 8081, "notify": 8081, "relay": 8080, "process-email": 8080}


def test_the_named_callers_may_read_the_metrics_of_every_handler_and_do_no_more() -> None:
    somebody = [{"namespaceSelector": {"matchLabels": {"team": "watch"}}}]
    rendering = full({"networkPolicy": {"metricsFrom": somebody}})
    for handler, port in MANAGEMENT.items():
        assert callers(rendering, handler, port) == somebody
    assert somebody[0] not in callers(rendering, "ingest")
    beside = full({"networkPolicy": {"metricsFrom": somebody}, "handlers": {"ingest": {"managementPort": None}}})
    assert somebody[0] in callers(beside, "ingest"), "a policy knows ports only"


def test_every_pod_may_read_the_metrics_until_somebody_is_named() -> None:
    for handler, port in MANAGEMENT.items():
        assert callers(full(), handler, port) == [{"namespaceSelector": {}}]


def test_a_list_of_callers_that_is_null_is_an_empty_one() -> None:
    rendering = full({"networkPolicy": {"notifyFrom": None, "metricsFrom": None}})
    assert callers(rendering, "notify") == []
    assert callers(rendering, "ingest") == callers(full(), "ingest")
    assert callers(rendering, "relay") == [{"namespaceSelector": {}}]


def test_until_callers_are_named_only_the_release_s_own_pods_may_call_the_api() -> None:
    nobody: Values = {"networkPolicy": {"apiFrom": []}}
    assert callers(least(nobody), "ingest") == []
    assert not least(nobody, {"networkPolicy": {"enabled": False}}).of("NetworkPolicy")


def test_an_ingress_to_notify_alone_needs_no_callers_of_the_api() -> None:
    hosts = [{"host": "a.example", "paths": [{"path": "/notify", "pathType": "Prefix", "handler": "notify"}]}]
    rendering = full(
        {
            "httpRoute": {"enabled": False},
            "ingress": {"enabled": True, "hosts": hosts},
            "networkPolicy": {"apiFrom": []},
        }
    )
    assert rendering.of("Ingress")


def test_a_test_pod_reaches_the_service_that_it_submits_to() -> None:
    rendering = full({"networkPolicy": {"apiFrom": [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}]}})
    ingest = of(rendering, "ingest")
    for pod in pods(each for each in rendering.objects if "test" in each.hooks):
        assert open_to(rendering, pod, 8080), str(pod)
        peers = [
            peer
            for rule in rules(rendering, ingest, "ingress")
            if opens(rule, rendering, ingest, 8080, "ingress")
            for peer in rule.get("from") or []
        ]
        assert any("podSelector" in peer and selects(peer["podSelector"], pod.labels) for peer in peers), str(pod)


def test_a_mail_handler_that_delivers_through_notify_may_reach_it() -> None:
    rendering = full(
        {"settings": {"notify": {"url": "http://tf-notify"}}, "secrets": {"notify": {"existingSecret": "notify"}}}
    )
    for handler in ("process-email", "process-sms"):
        assert open_to(rendering, of(rendering, handler), 8080), "the Service's port is not what a policy sees"


def test_network_policies_can_be_disabled() -> None:
    assert not least({"networkPolicy": {"enabled": False}}).of("NetworkPolicy")
