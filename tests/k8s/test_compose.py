"""docker-compose.yaml: how `docker compose` loads it, and what it promises."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskflux.cli.reference import sections
from taskflux.worker.loading import BUILT_IN
from taskflux.worker.settings import WorkerSettings
from tests.chart.rendering import render
from tests.k8s.files import COMPOSE, DEV, ROOT, compose_services, of_taskflux

OF_SERVERS = {"postgres", "kafka", "task-topic", "valkey", "mailpit", "msg91", "prometheus", "grafana"}
MARGIN = 15.0
"""Seconds that a handler may take beyond its attempts to end in good order."""


@pytest.fixture(scope="module")
def loaded(compose: Path) -> Mapping[str, Any]:
    """The whole file as `docker compose config` would show it."""
    done = subprocess.run(
        [compose, "--format=json", str(COMPOSE)],
        env={"PATH": os.environ["PATH"]},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model: Mapping[str, Any] = json.loads(done.stdout)
    return model


def test_docker_compose_loads_it_and_merges_as_we_do(loaded: Mapping[str, Any]) -> None:
    services = loaded["services"]
    assert services.keys() == compose_services().keys()
    for name, service in compose_services().items():
        assert services[name]["image"] == service["image"]
        assert services[name].get("environment", {}) == service.get("environment", {}), name


def test_docker_compose_refuses_what_is_misspelt(compose: Path, tmp_path: Path) -> None:
    misspelt = tmp_path / "docker-compose.yaml"
    misspelt.write_text(COMPOSE.read_text().replace("stop_grace_period", "stop_grace_periode"))
    done = subprocess.run([compose, str(misspelt)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "stop_grace_periode" in done.stderr


def test_every_handler_runs_and_everything_that_they_need() -> None:
    assert set(of_taskflux()) == set(BUILT_IN)
    assert {each["name"] for each in of_taskflux().values()} == set(BUILT_IN), "a service is called as what it runs"
    assert compose_services().keys() == set(BUILT_IN) | OF_SERVERS | {"setup"}


def test_one_service_builds_the_image_and_no_registry_is_asked_for_it() -> None:
    ours = {name: each for name, each in compose_services().items() if each["image"].startswith("taskflux")}
    assert {each["image"] for each in ours.values()} == {"taskflux:dev"}
    assert {each["pull_policy"] for each in ours.values()} == {"never"}
    assert [name for name, each in ours.items() if "build" in each] == ["setup"]
    build = ours["setup"]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).is_file()


def test_every_other_image_is_pinned_to_a_version_of_a_named_registry() -> None:
    for name, each in compose_services().items():
        if not each["image"].startswith("taskflux"):
            assert re.fullmatch(r"docker\.io/[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?(-alpine)?", each["image"]), name


def _variables() -> set[str]:
    return {f"TASKFLUX_{name}__{field}".upper() for name, model in sections().items() for field in model.model_fields}


def test_the_program_reads_every_variable() -> None:
    given = {name for each in compose_services().values() for name in each.get("environment", {})}
    ours = {name for name in given if name.startswith("TASKFLUX_")}
    assert ours
    assert ours <= _variables()


def test_only_services_that_deliver_have_the_providers_settings() -> None:
    knows = {
        provider: {name for name, each in of_taskflux().items() if f"TASKFLUX_{provider}" in str(each["environment"])}
        for provider in ("SMTP__", "MSG91__AUTH_KEY")
    }
    assert knows == {"SMTP__": {"process-email", "notify"}, "MSG91__AUTH_KEY": {"process-sms", "notify"}}


@pytest.mark.parametrize("name", sorted(compose_services()))
def test_no_container_has_more_privileges_than_it_needs(name: str) -> None:
    service = compose_services()[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert service["mem_limit"]
    # Kafka's image writes its properties, and its tools their logs, beside the programs.
    if name not in {"kafka", "task-topic"}:
        assert service["read_only"] is True
        assert service["user"] not in {"0", "root", "0:0"}


def test_every_port_is_open_to_this_machine_alone_and_given_once() -> None:
    published = [port for each in compose_services().values() for port in each.get("ports", ())]
    addresses = [port.rpartition(":")[0] for port in published]
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    assert len(set(addresses)) == len(addresses)
    head = COMPOSE.read_text().partition("\nname:")[0]
    assert {address.partition(":")[2] for address in addresses} == set(re.findall(r"http://localhost:(\d+)", head))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_handler_starts_after_the_setup_is_asked_whether_it_serves_and_gets_the_time_it_drains(name: str) -> None:
    service = of_taskflux()[name]
    assert service["depends_on"]["setup"] == {"condition": "service_completed_successfully"}
    assert "/readyz" in service["healthcheck"]["test"][-1]
    grace = float(service["stop_grace_period"].removesuffix("s"))
    drain = float(service["environment"].get("TASKFLUX_WORKER__DRAIN_SECONDS", WorkerSettings().drain_seconds))
    assert grace >= drain + MARGIN
    assert service["restart"] == "unless-stopped"


def test_no_service_waits_for_one_that_has_no_health_check_and_never_completes() -> None:
    for name, each in compose_services().items():
        needed = each.get("depends_on", {})
        for other, how in needed.items() if isinstance(needed, Mapping) else ():
            there = compose_services()[other]
            if how["condition"] == "service_healthy":
                assert there["healthcheck"], f"{name} waits for {other}"
            else:
                assert how["condition"] == "service_completed_successfully"
                assert there["restart"] == "no", f"{name} waits for the end of {other}"


def test_what_is_mounted_is_there_and_cannot_be_written() -> None:
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    for each in compose_services().values():
        for mount in each.get("volumes", ()):
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert rest.endswith(":ro")
            else:
                assert source in volumes


def _mounted(service: str) -> Mapping[str, Path]:
    """Container path → file of ours."""
    mounts: Sequence[str] = compose_services()[service]["volumes"]
    split = [mount.split(":") for mount in mounts if mount.startswith(".")]
    return {parts[1]: ROOT / parts[0] for parts in split}


def test_prometheus_reads_its_configuration_and_asks_every_handler() -> None:
    (path,) = [arg.partition("=")[2] for arg in compose_services()["prometheus"]["command"] if "config.file" in arg]
    file = _mounted("prometheus")[path]
    jobs = {job["job_name"]: job for job in yaml.safe_load(file.read_text())["scrape_configs"]}
    (found,) = jobs["taskflux"]["dns_sd_configs"]
    assert set(found["names"]) == set(BUILT_IN)
    assert found["port"] == 8080


def test_prometheus_names_its_targets_as_the_charts_pod_monitor_does() -> None:
    (job,) = (
        each
        for each in yaml.safe_load((ROOT / "compose" / "prometheus.yaml").read_text())["scrape_configs"]
        if each["job_name"] == "taskflux"
    )
    (monitor,) = render({"monitoring": {"podMonitor": {"enabled": True}}}, DEV).of("PodMonitor")
    (endpoint,) = monitor.spec["podMetricsEndpoints"]
    theirs = {each["targetLabel"] for each in endpoint["relabelings"]}
    assert {each["target_label"] for each in job["relabel_configs"]} == theirs


def test_promtool_accepts_the_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool here (on Debian: apt-get install prometheus)")
    file = ROOT / "compose" / "prometheus.yaml"
    done = subprocess.run([promtool, "check", "config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_shows_the_charts_dashboards_from_prometheus() -> None:
    mounted = _mounted("grafana")
    providers = yaml.safe_load(mounted["/etc/grafana/provisioning/dashboards/taskflux.yaml"].read_text())["providers"]
    (folder,) = [each["options"]["path"] for each in providers]
    assert mounted[folder] == ROOT / "charts" / "taskflux" / "dashboards"
    sources = yaml.safe_load(mounted["/etc/grafana/provisioning/datasources/taskflux.yaml"].read_text())
    (source,) = sources["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
