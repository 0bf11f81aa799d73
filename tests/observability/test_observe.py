"""`taskflux dev --observe`: Prometheus beside the stack, with the chart's alerts, and what it says without one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from taskflux.local import observe
from taskflux.local.ports import free_port
from tests.integration.local.test_dev import Dev, gone, remember_free_ports
from tests.observability.alerts import ALERTS, ROOT, rules
from tests.observability.prometheus import Client
from tests.observability.tools import program


@asynccontextmanager
async def observed(data_dir: Path, path: str) -> AsyncIterator[Dev]:
    """`taskflux dev --observe` with this PATH."""
    remember_free_ports(data_dir)
    ports = json.loads((data_dir / "ports.json").read_text())
    (data_dir / "ports.json").write_text(json.dumps({**ports, "prometheus": free_port(), "grafana": free_port()}))
    words = ["dev", "--observe", "--no-samples", "--port", str(free_port()), "--data-dir", str(data_dir)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLUX_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "taskflux", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**clean, "PATH": path, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield Dev(process, data_dir)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def only(directory: Path, *names: str) -> str:
    """A PATH on which these programs are, and no others."""
    directory.mkdir()
    for name in names:
        (directory / name).symlink_to(program(name))
    return str(directory)


def with_grafana(directory: Path) -> str:
    """A PATH on which Prometheus is and Grafana; the test is skipped where the latter is missing."""
    command = observe.grafana_command()
    if command is None:
        pytest.skip("there is no Grafana here")
    path = only(directory, "prometheus")
    (directory / Path(command[0]).name).symlink_to(command[0])
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_prometheus_is_started_with_the_alerts_and_ends_with_the_stack(tmp_path: Path, servers_dir: Path) -> None:
    async with observed(servers_dir / "observed", only(tmp_path / "bin", "prometheus")) as running:
        said = await running.says("Alerts", "/alerts", within=120)
        url = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert url is not None
        client = Client(url[0])
        try:
            assert {rule["name"] for rule in await client.rules()} == rules().keys()
            await client.until("a scrape", "count(taskflux_build_info)", lambda value: value >= 7)
            assert await client.value("up") == 1
        finally:
            await client.close()
        said_before = "".join(running.said)
        assert "Grafana is not installed" in said_before
        children = running.children()
        assert "Prometheus" in children
        running.process.send_signal(signal.SIGINT)
        assert await running.ends(within=60) == 0
        await gone(*children.values())
        assert "Traceback" not in "".join(running.said)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_grafana_where_it_is_installed_shows_the_dashboards_with_data_and_logs_no_error(
    tmp_path: Path, servers_dir: Path
) -> None:
    path, log = with_grafana(tmp_path / "bin"), servers_dir / "shown/logs/grafana.log"
    async with observed(servers_dir / "shown", path) as running:
        await running.says("Grafana", "/d/taskflux-overview", within=240)
        urls = dict(re.findall(r"(Prometheus|Grafana) +(http://127\.0\.0\.1:\d+)", "".join(running.said)))
        client = Client(urls["Prometheus"])
        try:
            await client.until("a scrape", "count(taskflux_build_info)", lambda value: value >= 7)
        finally:
            await client.close()
        async with httpx.AsyncClient(base_url=urls["Grafana"], timeout=20, trust_env=False) as grafana:
            boards = (await grafana.get("/api/search", params={"type": "dash-db"})).json()
            asked = {"refId": "A", "datasource": {"uid": "prometheus"}, "expr": "taskflux_build_info", "instant": True}
            question = {"queries": [asked], "from": "now-5m", "to": "now"}
            answer = (await grafana.post("/api/ds/query", json=question)).json()
        assert {each["uid"] for each in boards} == {"taskflux-overview", "taskflux-handler", "taskflux-stores"}
        assert len(answer["results"]["A"]["frames"]) >= 7
        running.process.send_signal(signal.SIGINT)
        assert await running.ends(within=60) == 0
    assert [line for line in log.read_text("utf-8").splitlines() if "level=error" in line] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_without_prometheus_it_says_how_to_install_it_and_runs(tmp_path: Path, servers_dir: Path) -> None:
    async with observed(servers_dir / "unobserved", only(tmp_path / "bin")) as running:
        await running.says("Prometheus", "is not installed", "apt-get install prometheus", within=120)
        await running.says("Serving on")
        running.process.send_signal(signal.SIGINT)
        assert await running.ends(within=60) == 0


def test_the_alerts_files_make_one_file_of_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(observe.rule_file(ALERTS.glob("*.yaml")))
    assert yaml.safe_load(file.read_text()) == {"groups": [{"name": "taskflux", "rules": list(rules().values())}]}
    assert _promtool("rules", file).count("SUCCESS") == 1
    file.write_text(observe.rule_file([]))
    assert _promtool("rules", file).count("SUCCESS") == 1


def test_the_configuration_is_prometheuses(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text("groups: []\n")
    (tmp_path / "prometheus.yml").write_text(observe.prometheus_configuration("127.0.0.1:8080", 2.5))
    assert "SUCCESS" in _promtool("config", tmp_path / "prometheus.yml")


def test_grafana_is_configured_with_this_prometheus_and_the_charts_dashboards(tmp_path: Path) -> None:
    files = {name: yaml.safe_load(text) for name, text in observe.grafana_provisioning("http://x:1", tmp_path).items()}
    (source,) = files["datasources/taskflux.yaml"]["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://x:1")
    (provider,) = files["dashboards/taskflux.yaml"]["providers"]
    assert provider["options"]["path"] == str(tmp_path)
    settings: Mapping[str, str] = observe.grafana_environment(tmp_path, 3000)
    assert settings["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert (settings["GF_SERVER_DOMAIN"], settings["GF_SERVER_ENFORCE_DOMAIN"]) == ("127.0.0.1", "true")
    assert all(value.startswith(str(tmp_path)) for name, value in settings.items() if name.startswith("GF_PATHS_"))
    assert Path(settings["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).is_file()


@pytest.mark.parametrize("layout", ["grafana", "usr/share/grafana"])
def test_grafanas_own_files_are_found_as_its_archive_and_as_packages_lay_them(tmp_path: Path, layout: str) -> None:
    home = tmp_path / layout
    (home / "conf").mkdir(parents=True)
    (home / "conf/defaults.ini").touch()
    binary = (home if layout == "grafana" else tmp_path / "usr") / "bin/grafana"
    binary.parent.mkdir(parents=True)
    binary.touch()
    assert observe.grafana_home(str(binary)) == home


def _promtool(what: str, file: Path) -> str:
    command = [program("promtool"), "check", what, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
