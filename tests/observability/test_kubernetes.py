"""Queries under Kubernetes: many pods, each with its namespace, release, pod and handler."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from tests.observability.boards import expressions
from tests.observability.tools import program

PODS = {
    "process-email-1": ("process-email", "email"),
    "process-email-2": ("process-email", "email"),
    "process-sms-1": ("process-sms", "sms"),
    "notify-1": ("notify", None),
}
RELAY = 'namespace="a",release="r",pod="relay-1",handler="relay"'


def test_the_handlers_dashboard_counts_the_handlers_own_pods_and_its_own_provider(tmp_path: Path) -> None:
    series = {
        f'taskflux_type_info{{{RELAY},type="email",provider="smtp"}}': "1x20",
        f'taskflux_type_info{{{RELAY},type="sms",provider="msg91"}}': "1x20",
        f'taskflux_circuit_open{{{RELAY},provider="smtp"}}': "1x20",
        f'taskflux_circuit_open{{{RELAY},provider="msg91"}}': "0+0x20",
    }
    for pod, (handler, task_type) in PODS.items():
        where = f'namespace="a",release="r",pod="{pod}",handler="{handler}"'
        if task_type is not None:
            series[f'taskflux_concurrency{{{where},type="{task_type}"}}'] = "10x20"
        series[f'taskflux_provider_requests_total{{{where},provider="smtp",outcome="succeeded"}}'] = "0+60x20"
        series[f"process_cpu_seconds_total{{{where}}}"] = "0+30x20"
        series[f"process_resident_memory_bytes{{{where}}}"] = "1000x20"
        # Another release in the same namespace, whose pods happen to be called the same, and run something else.
        elsewhere = where.replace('release="r"', 'release="s"')
        series[f"process_cpu_seconds_total{{{elsewhere}}}"] = "0+30x20"
    asked = {what: expr.replace("[1m]", "[2m]") for what, expr in expressions("email").items()}
    expected = {
        "handler: Its provider / Calls [{{provider}} {{outcome}}]": ('{provider="smtp",outcome="succeeded"}', 2),
        "handler: Its provider / Circuit [{{provider}}]": ('{provider="smtp"}', 1),
        "handler: Its processes / CPU [{{handler}}]": ('{handler="process-email"}', 1),
        "handler: Its processes / Memory [{{handler}}]": ('{handler="process-email"}', 1000),
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": asked[what], "eval_time": "10m", "exp_samples": [{"labels": labels, "value": value}]}
            for what, (labels, value) in expected.items()
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"tests": [test]}))
    command = [program("promtool"), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
