"""What looks on at a local stack: Prometheus with the chart's alerts, and Grafana with its dashboards.

Neither is brought along: whichever is installed is started, on the loopback, with all of its files under the data
directory. Alerts and dashboards are the chart's, which stands in a checkout of TaskFlux and not in its package.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from taskflux.local.console import Console, from_os_error, rotate
from taskflux.local.ports import LOOPBACK, Ports
from taskflux.local.supervisor import Part, Program, Supervisor

CHART: Final = Path(__file__).parents[2] / "charts/taskflux"
SCRAPE_SECONDS: Final = 5.0
_INSTALL: Final = "Debian and Ubuntu: apt-get install prometheus; macOS: brew install prometheus"


class Prometheus(Program):
    """A Prometheus that scrapes one address and knows these rules; see `Program`."""

    def __init__(
        self,
        binary: str,
        directory: Path,
        target: str,
        *,
        port: int,
        log: Path,
        rules: str = "",
        scrape_seconds: float = SCRAPE_SECONDS,
    ) -> None:
        """`target` is host:port of what answers /metrics; `rules` is the text of a rule file."""
        self._directory = directory
        self._files = {
            "prometheus.yml": prometheus_configuration(target, scrape_seconds),
            "rules.yml": rules or "groups: []\n",
        }
        argv = [
            binary,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--storage.tsdb.retention.time=7d",
            "--storage.tsdb.retention.size=1GB",
            "--enable-feature=exemplar-storage",
            f"--web.listen-address={LOOPBACK}:{port}",
            "--log.level=warn",
        ]
        super().__init__("Prometheus", argv, port=port, log=log, environment=os.environ, ready_path="/-/ready")

    async def start(self) -> None:
        """Start it; see `Server.start`."""
        _write(self._directory, self._files)
        await super().start()


class Grafana(Program):
    """A Grafana that knows one Prometheus and a folder of dashboards; whoever reaches it needs no password."""

    def __init__(
        self, command: tuple[str, ...], home: Path, directory: Path, prometheus: str, *, port: int, log: Path
    ) -> None:
        """`prometheus` is its URL; `home` is where Grafana's own files are."""
        self._directory = directory
        self._files = grafana_provisioning(prometheus, CHART / "dashboards")
        super().__init__(
            "Grafana",
            [*command, "--homepath", home],
            port=port,
            log=log,
            environment={**os.environ, **grafana_environment(directory, port)},
            ready_path="/api/health",
        )

    async def start(self) -> None:
        """Start it; see `Server.start`."""
        _make(self._directory / each for each in ("plugins", "provisioning/alerting", "provisioning/plugins"))
        _write(self._directory / "provisioning", self._files)
        await super().start()


async def start(data_dir: Path, target: str, console: Console, supervisor: Supervisor) -> list[tuple[str, str]]:
    """Start what is installed; (what, address) of each thing that a person can open.

    Raises:
        Trouble: one is installed and does not start.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        console.warning("Prometheus", f"is not installed, so nothing is recorded ({_INSTALL})")
        return []
    if not CHART.is_dir():
        console.note("alerts and dashboards stand in a checkout of TaskFlux: Prometheus runs without them")
    ports = Ports(data_dir / "ports.json")
    port, grafana_port = ports.choose("prometheus", 9090), ports.choose("grafana", 3000)
    ports.save()
    logs = data_dir / "logs"
    for name in ("prometheus", "grafana"):
        rotate(logs / f"{name}.log")
    prometheus = Prometheus(
        binary,
        data_dir / "prometheus",
        target,
        port=port,
        log=logs / "prometheus.log",
        rules=rule_file((CHART / "alerts").glob("*.yaml")),
    )
    await supervisor.start(Part(prometheus, prometheus.url))
    opened = [("Prometheus", prometheus.url), ("Alerts", f"{prometheus.url}/alerts")]
    command = grafana_command()
    if command is None:
        console.note("Grafana is not installed: the dashboards are not shown")
        return opened
    if (home := grafana_home(command[0])) is None:
        console.warning(
            "Grafana", f"{command[0]} is there, but not its own files (share/grafana with conf/defaults.ini)"
        )
        return opened
    grafana = Grafana(command, home, data_dir / "grafana", prometheus.url, port=grafana_port, log=logs / "grafana.log")
    await supervisor.start(Part(grafana, grafana.url))
    return [*opened, ("Grafana", f"{grafana.url}/d/taskflux-overview")]


def rule_file(alerts: Iterable[Path]) -> str:
    """The chart's alerts (one in a file) as one file for Prometheus."""
    items = [
        "\n".join(["  -", *(f"    {line}" for line in path.read_text("utf-8").splitlines())]) for path in sorted(alerts)
    ]
    return "\n".join(["groups:", "- name: taskflux", "  rules:" if items else "  rules: []", *items, ""])


def prometheus_configuration(target: str, scrape_seconds: float) -> str:
    """prometheus.yml, as JSON, which is YAML too. One scrape gets all: ingest's /metrics shows every process's."""
    every = f"{round(scrape_seconds * 1000)}ms"
    document = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "taskflux", "static_configs": [{"targets": [target]}]}],
    }
    return json.dumps(document, indent=1) + "\n"


def grafana_provisioning(prometheus: str, dashboards: Path) -> dict[str, str]:
    """File under `provisioning` → its content."""
    source = {
        "name": "Prometheus",
        "type": "prometheus",
        "uid": "prometheus",
        "access": "proxy",
        "url": prometheus,
        "isDefault": True,
        "editable": True,  # so that it can be told where the traces of its exemplars are
        "jsonData": {"timeInterval": f"{SCRAPE_SECONDS:g}s"},
    }
    provider: dict[str, Any] = {"name": "TaskFlux", "folder": "TaskFlux", "type": "file"}
    provider["options"] = {"path": str(dashboards)}
    return {
        "datasources/taskflux.yaml": json.dumps({"apiVersion": 1, "datasources": [source]}, indent=1),
        "dashboards/taskflux.yaml": json.dumps({"apiVersion": 1, "providers": [provider]}, indent=1),
    }


def grafana_environment(directory: Path, port: int) -> Mapping[str, str]:
    """Its settings: on the loopback alone, all files in `directory`, and it calls nobody outside."""
    return {
        "GF_SERVER_HTTP_ADDR": LOOPBACK,
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_SERVER_DOMAIN": LOOPBACK,
        "GF_SERVER_ENFORCE_DOMAIN": "true",  # another name is sent there: no website can rebind its own to this one
        "GF_PATHS_DATA": str(directory / "data"),
        "GF_PATHS_LOGS": str(directory / "logs"),
        "GF_PATHS_PLUGINS": str(directory / "plugins"),
        "GF_PATHS_PROVISIONING": str(directory / "provisioning"),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Admin",
        "GF_AUTH_DISABLE_LOGIN_FORM": "true",
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(CHART / "dashboards/overview.json"),
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
        "GF_NEWS_NEWS_FEED_ENABLED": "false",
        "GF_PLUGINS_PREINSTALL_DISABLED": "true",
        "GF_PLUGINS_PUBLIC_KEY_RETRIEVAL_DISABLED": "true",
        "GF_SECURITY_DISABLE_GRAVATAR": "true",
    }


def grafana_command() -> tuple[str, ...] | None:
    """How to start the one that is installed: `grafana server` since version 10, before that `grafana-server`."""
    if (binary := shutil.which("grafana")) is not None:
        return binary, "server"
    if (binary := shutil.which("grafana-server") or shutil.which("grafana-server", path="/usr/sbin")) is not None:
        return (binary,)
    return None


def grafana_home(binary: str) -> Path | None:
    """Where its own files are: beside the program as in its archive, or in share/grafana as packages have it."""
    found = Path(binary).resolve()
    above = (found.parents[1], *(parent / "share/grafana" for parent in found.parents), Path("/usr/share/grafana"))
    return next((home for home in above if (home / "conf/defaults.ini").is_file()), None)


def _make(directories: Iterable[Path]) -> None:
    """What Grafana reads if anything is there: it logs an error for each that is not."""
    for path in directories:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, f"making {path}") from error


def _write(directory: Path, files: Mapping[str, str]) -> None:
    try:
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    except OSError as error:
        raise from_os_error(error, f"writing in {directory}") from error
