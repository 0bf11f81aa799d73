"""The chart against the program: whatever one of them declares about the other."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from taskflux.cli.reference import variables
from taskflux.version import VERSION
from taskflux.worker.loading import BUILT_IN, built_in_handlers, load
from taskflux.worker.process import Service
from taskflux.worker.settings import Settings
from tests.chart import deployments
from tests.chart.cases import full, handler_container
from tests.chart.rendering import CHART, Rendering, defaults

ROOT: Final = CHART.parents[1]
PREFIX: Final = "shop-"
VARIABLES: Final = {each.name: each for each in variables()}
MIXED: Final = "task-topic"


@pytest.fixture
def settings() -> Settings:
    return Settings.model_validate({"kafka": {"topic_prefix": PREFIX}, "router": {"topic": MIXED}})


def prefixed() -> Rendering:
    return full({"settings": {"kafka": {"topicPrefix": PREFIX}}})


def value(handler: str, *path: str) -> Any:
    """A handler's value, its own or the default."""
    for found in (defaults()["handlers"][handler], defaults()["handlerDefaults"]):
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            return found
    raise LookupError(f"handlers.{handler}.{'.'.join(path)}")


def test_the_handlers_of_the_values_are_those_of_the_code() -> None:
    assert set(defaults()["handlers"]) == set(BUILT_IN)


def test_each_deployment_runs_the_handler_that_it_is_named_after() -> None:
    rendering = full()
    assert {each.component for each in rendering.of("Deployment")} == set(BUILT_IN)
    for handler in BUILT_IN:
        assert handler_container(rendering, handler).args == ["run", handler]


def test_task_types_are_those_that_the_handlers_declare() -> None:
    declared = {handler.name: handler.type for handler in built_in_handlers()}
    assert declared == {name: value(name, "taskType") for name in BUILT_IN if value(name, "taskType")}


def test_what_scales_a_handler_is_the_group_and_topic_that_it_reads(settings: Settings) -> None:
    rendering = prefixed()
    for deployment in deployments.deployments(settings):
        scaled = rendering.handler("ScaledObject", deployment.name)
        assert scaled is not None
        by_lag = [each["metadata"] for each in scaled.spec["triggers"] if each["type"] == "kafka"]
        if deployment.reads is None:
            assert not by_lag
            continue
        (metadata,) = by_lag
        assert (metadata["consumerGroup"], metadata["topic"]) == (deployment.reads.group, deployment.reads.topic)


def test_only_handlers_that_serve_an_api_have_a_service(settings: Settings) -> None:
    serving = {each.name for each in deployments.deployments(settings) if each.serves_api}
    assert {each.component for each in full().of("Service")} == serving


def test_each_handler_is_given_the_secrets_that_it_needs(settings: Settings) -> None:
    for deployment in deployments.deployments(settings):
        given = set(value(deployment.name, "secrets"))
        assert set(deployment.needs) <= given, deployment.name
        if deployment.provider is not None:
            assert deployment.provider in given, deployment.name
        providers = {"smtp", "msg91"} & given
        allowed = {"notify": {"smtp", "msg91"}, "ingest": {"msg91"}}  # ingest: the secret of the webhook's path
        assert providers <= allowed.get(deployment.name, {deployment.provider}), deployment.name


def test_ports_and_probes_match_the_program() -> None:
    assert defaults()["handlerDefaults"]["port"] == deployments.PORT
    for handler in BUILT_IN:
        container = handler_container(full(), handler)
        answers = container.port(container.spec["livenessProbe"]["httpGet"]["port"])
        if handler in ("ingest", "notify"):
            assert container.environment["TASKFLUX_HTTP__PORT"] == str(container.port("http")) == str(deployments.PORT)
            assert container.environment["TASKFLUX_HTTP__MANAGEMENT_PORT"] == str(answers) == "8081"
        else:
            assert container.environment["TASKFLUX_HTTP__PORT"] == str(answers) == str(deployments.PORT)
            assert "TASKFLUX_HTTP__MANAGEMENT_PORT" not in container.environment
        paths = {probe: container.spec[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")}
        assert paths == {"livenessProbe": deployments.LIVENESS, "readinessProbe": deployments.READINESS}
    (monitor,) = full().of("PodMonitor")
    assert [each["path"] for each in monitor.spec["podMetricsEndpoints"]] == [deployments.METRICS]


def test_a_custom_port_is_also_passed_to_the_program() -> None:
    rendering = full({"handlers": {"relay": {"port": 9999}}})
    container = handler_container(rendering, "relay")
    assert container.environment["TASKFLUX_HTTP__PORT"] == "9999"
    assert container.port(container.spec["readinessProbe"]["httpGet"]["port"]) == 9999


def test_the_default_drain_time_matches_the_program() -> None:
    assert defaults()["handlerDefaults"]["drainSeconds"] == deployments.DRAIN_SECONDS


def test_scaling_in_never_cuts_off_an_attempt_within_its_timeout(settings: Settings) -> None:
    for deployment in deployments.deployments(settings):
        if deployment.timeout is not None:
            assert value(deployment.name, "drainSeconds") >= deployment.timeout, deployment.name


def test_pool_sizes_match_the_program() -> None:
    for handler in BUILT_IN:
        module = handler.replace("-", "_") if isinstance(load(handler), Service) else None
        source = Path(f"handlers/{module}.py" if module else "taskflux/worker/worker.py").read_text()
        (size,) = {
            keyword.value.value
            for call in ast.walk(ast.parse(source))
            if isinstance(call, ast.Call)
            for keyword in call.keywords
            if keyword.arg == "pool_size" and isinstance(keyword.value, ast.Constant)
        }
        assert value(handler, "poolSize") == size, handler
        assert handler_container(full(), handler).environment["TASKFLUX_POSTGRES__POOL_SIZE"] == str(size)


def test_the_chart_has_the_version_of_the_program() -> None:
    described: Any = yaml.load((CHART / "Chart.yaml").read_text(), yaml.CSafeLoader)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert described["appVersion"] == project["version"] == VERSION


def test_the_chart_declares_kubernetes_versions_and_helm_enforces_them() -> None:
    described: Any = yaml.load((CHART / "Chart.yaml").read_text(), yaml.CSafeLoader)
    assert described["kubeVersion"]
    assert described["icon"]
    annotations = described["annotations"]
    assert {"artifacthub.io/license", "artifacthub.io/links", "artifacthub.io/images"} <= annotations.keys()
    assert f":{described['appVersion']}" in annotations["artifacthub.io/images"]
