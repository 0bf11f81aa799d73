"""k8s/dependencies: valid, confined, and in agreement with k8s/values-dev.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest

from taskflux.providers.msg91 import Msg91Settings
from taskflux.stream.settings import KafkaSettings
from tests.chart import strict
from tests.chart.objects import Object, PodTemplate, pods
from tests.chart.rendering import load_values
from tests.k8s.files import (
    DEV,
    NAMESPACE,
    RELOAD,
    chart,
    command_settings,
    compose_services,
    dependencies,
    environment,
    kafka_properties,
)
from tests.kafka.classpath import POM

DEPENDENCIES = {"postgres", "kafka", "valkey", "mailpit", "msg91", "task-topic"}
OF_BOTH = sorted(DEPENDENCIES)
HOURS = 60


def _pods() -> Sequence[PodTemplate]:
    return [*pods(dependencies().objects), *map(_stateful, dependencies().of("StatefulSet"))]


def _stateful(each: Object) -> PodTemplate:
    template = each.spec["template"]
    return PodTemplate(each, template["metadata"], template["spec"])


def _of(name: str) -> PodTemplate:
    (found,) = (pod for pod in _pods() if pod.owner.name == name)
    return found


def _container(name: str) -> Mapping[str, Any]:
    (only,) = _of(name).containers
    return only


def _secret(name: str) -> Mapping[str, str]:
    data: Mapping[str, str] = dependencies().one("Secret", name).document["stringData"]
    return data


@pytest.mark.parametrize("each", dependencies().objects, ids=str)
def test_the_api_server_would_know_every_field(each: Object) -> None:
    assert strict.faults(each) == []


def test_there_is_one_of_each_and_never_a_second_taskflux() -> None:
    assert {pod.owner.name for pod in _pods()} == DEPENDENCIES
    assert {pod.owner.spec.get("replicas", 1) for pod in _pods()} == {1}
    of_taskflux = [pod for pod in _pods() if pod.containers[0]["image"].startswith("taskflux")]
    assert [pod.owner.name for pod in of_taskflux] == ["msg91"]
    assert "taskflux" not in of_taskflux[0].containers[0]["command"]


def test_everything_stands_in_the_namespace_that_admits_restricted_pods_alone() -> None:
    namespace = dependencies().one("Namespace", NAMESPACE)
    assert namespace.labels["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [each for each in dependencies().objects if each.kind != "Namespace"]
    assert {each.metadata.get("namespace") for each in others} == {NAMESPACE}


@pytest.mark.parametrize("name", OF_BOTH)
def test_no_pod_asks_for_more_than_restricted_pod_security_gives(name: str) -> None:
    pod = _of(name)
    assert pod.spec["securityContext"]["runAsNonRoot"] is True
    assert pod.spec["securityContext"]["runAsUser"] > 0
    assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod.spec["automountServiceAccountToken"] is False
    assert not any("hostPath" in volume for volume in pod.spec.get("volumes", ()))
    for container in pod.all_containers:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container.get("ports", ()))


def test_only_kafka_writes_to_its_root_file_system() -> None:
    writes = {
        pod.owner.name
        for pod in _pods()
        for container in pod.containers
        if container["securityContext"]["readOnlyRootFilesystem"] is not True
    }
    assert writes == {"kafka", "task-topic"}


@pytest.mark.parametrize("name", sorted(DEPENDENCIES - {"task-topic"}))
def test_each_says_when_it_serves_and_is_bounded(name: str) -> None:
    container = _container(name)
    assert container["readinessProbe"]
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_every_image_is_pinned_to_a_version() -> None:
    for pod in _pods():
        for container in pod.containers:
            registry, _, tag = container["image"].partition(":")
            assert tag
            assert tag != "latest"
            assert registry == "taskflux" or "." in registry.split("/")[0], "from which registry?"


def test_services_reach_pods_at_ports_that_are_open() -> None:
    for service in dependencies().of("Service"):
        (pod,) = (each for each in _pods() if service.spec["selector"].items() <= each.labels.items())
        names = {port["name"] for container in pod.containers for port in container["ports"]}
        assert {port["targetPort"] for port in service.spec["ports"]} <= names


def test_no_variable_of_a_service_link_can_become_a_setting_of_kafka() -> None:
    assert all(pod.spec["enableServiceLinks"] is False for pod in _pods())


def _addresses(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every host and port that the values and the Secrets name."""
    host, _, port = values["settings"]["kafka"]["bootstrapServers"].partition(":")
    yield host, int(port)
    yield values["settings"]["smtp"]["host"], values["settings"]["smtp"]["port"]
    for url in (
        values["settings"]["msg91"]["baseUrl"],
        _secret("dev-postgres")["dsn"],
        _secret("dev-redis")["url"],
    ):
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        yield parts.hostname, parts.port


def test_every_address_is_a_service_by_its_full_name_so_that_keda_reaches_it_too() -> None:
    services = {
        (f"{service.name}.{NAMESPACE}.svc", port["port"])
        for service in dependencies().of("Service")
        for port in service.spec["ports"]
    }
    assert set(_addresses(load_values(DEV))) <= services
    (advertised,) = re.findall(r"PLAINTEXT://(\S+)", environment(_container("kafka"))["KAFKA_ADVERTISED_LISTENERS"])
    host, _, port = advertised.partition(":")
    assert (host, int(port)) in services


def test_every_secret_and_key_that_the_chart_reads_is_there() -> None:
    made = {(each.name, key) for each in dependencies().of("Secret") for key in each.document["stringData"]}
    read = set(_references(chart(DEV).objects)) | set(_references([pod.owner for pod in _pods()]))
    assert read
    assert read <= made


def _references(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    for each in objects:
        yield from _below(each.document)


def _below(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for field, below in value.items():
            if field == "secretKeyRef":
                yield below["name"], below["key"]
            elif field == "secret" and isinstance(below, Mapping) and "items" in below:
                yield from ((below.get("secretName") or below["name"], item["key"]) for item in below["items"])
            elif field == "secretTargetRef":
                yield from ((each["name"], each["key"]) for each in below)
            else:
                yield from _below(below)
    elif isinstance(value, list):
        for below in value:
            yield from _below(below)


def test_the_secret_path_is_one_that_the_program_takes() -> None:
    secret = _secret("dev-msg91")
    Msg91Settings.model_validate({"auth_key": secret["auth-key"], "webhook_secret": secret["webhook-secret"]})


def test_postgres_takes_the_password_of_the_dsn() -> None:
    parts = urlsplit(_secret("dev-postgres")["dsn"])
    variables = environment(_container("postgres"))
    assert parts.password == _secret("dev-postgres")["password"]
    assert (parts.username, parts.path.strip("/")) == (variables["POSTGRES_USER"], variables["POSTGRES_DB"])


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize("values", [(DEV,), (DEV, RELOAD)], ids=["dev", "reload"])
def test_the_chart_with_these_values_is_valid(values: tuple[Any, ...]) -> None:
    rendering = chart(*values)
    assert [fault for each in rendering.objects for fault in strict.faults(each, rendering)] == []


def test_every_handler_is_on_and_few_records_are_partitioned_further_than_pods_may_run() -> None:
    values, rendering = load_values(DEV), chart(DEV)
    names = {each.component for each in rendering.of("Deployment")}
    assert names == {
        "ingest", "relay", "router", "process-email", "process-sms", "process-simulated", "notify", "dlq-sink",
    }  # fmt: skip
    most = {each.spec["maxReplicaCount"] for each in rendering.of("ScaledObject")}
    assert max(most) <= values["settings"]["kafka"]["partitions"]


def test_providers_ports_are_open_to_those_who_ask_them() -> None:
    smtp, msg91 = 1025, 8025
    asked = {"process-email": {smtp}, "process-sms": {msg91}, "notify": {smtp, msg91}}
    for handler, ports in asked.items():
        policy = chart(DEV).handler("NetworkPolicy", handler)
        assert policy is not None
        opened = {port["port"] for rule in policy.spec["egress"] for port in rule.get("ports", ())}
        assert ports <= opened, handler


def test_while_editing_each_handler_is_one_pod_that_reloads_and_can_be_written_to() -> None:
    rendering = chart(DEV, RELOAD)
    assert not rendering.of("ScaledObject", "HorizontalPodAutoscaler")
    for each in rendering.of("Deployment"):
        assert each.spec["replicas"] == 1
        assert each.pod is not None
        (container,) = each.pod.containers
        assert "--reload" in container["args"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_group_remembers_where_it_stood_for_longer_than_topics_keep_records() -> None:
    for variables in (environment(_container("kafka")), compose_services()["kafka"]["environment"]):
        minutes = float(kafka_properties(variables)["offsets.retention.minutes"])
        assert minutes > KafkaSettings().retention_hours * HOURS


def test_kafka_is_the_version_that_the_integration_tests_run() -> None:
    (version,) = re.findall(r"<kafka.version>(.*)</kafka.version>", POM.read_text())
    assert _container("kafka")["image"] == f"docker.io/apache/kafka:{version}"


@pytest.mark.parametrize("name", sorted(DEPENDENCIES - {"msg91"}))
def test_docker_compose_runs_the_same_image(name: str) -> None:
    assert compose_services()[name]["image"] == _container(name)["image"]


def test_docker_compose_configures_kafka_alike_but_for_its_address() -> None:
    own = dict(environment(_container("kafka")))
    theirs = dict(compose_services()["kafka"]["environment"])
    assert own.pop("KAFKA_ADVERTISED_LISTENERS") != theirs.pop("KAFKA_ADVERTISED_LISTENERS")
    assert own == theirs


def test_postgres_bears_the_connections_of_all_pods_at_full_scale() -> None:
    settings = command_settings(_container("postgres")["args"])
    assert int(settings["max_connections"]) == load_values(DEV)["postgresMaxConnections"]
