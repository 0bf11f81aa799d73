"""What a process imports before it handles its first task, and how it is started."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

NAMED = {"TASKFLUX_POSTGRES__DSN": "postgresql://localhost/x", "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": "localhost:9092"}
UNUSED = (
    "aiosmtplib",
    "click",
    "httptools",
    "httpx",
    "jsonschema_rs",
    "opentelemetry",
    "prometheus_client",
    "psutil",
    "redis",
    "requests",
    "sqlite3",
    "starlette",
    "taskflux.cli",
    "taskflux.handlers.process_email",
    "taskflux.http",
    "taskflux.local",
    "taskflux.providers.email",
    "taskflux.providers.smtp",
    "taskflux.upkeep",
    "urllib.request",
    "uvicorn",
)
"""Modules that a worker without a provider, traces and Redis does not use, or not before its metrics are asked for."""


def run(*words: str, **environment: str) -> tuple[int, str]:
    """The command, whose imports Python tells; its exit status and standard error."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("TASKFLUX_")}
    argv = [sys.executable, "-X", "importtime", "-m", "taskflux", *words]
    ended = subprocess.run(argv, env={**kept, "TASKFLUX_DEV": "off", **environment}, capture_output=True, text=True)
    return ended.returncode, ended.stderr


def imported(said: str) -> set[str]:
    """The modules that were imported, and the packages that these are in."""
    found = re.findall(r"^import time:.*\| +([\w.]+)$", said, re.MULTILINE)
    return {".".join(name.split(".")[:length]) for name in found for length in range(1, name.count(".") + 2)}


def test_a_worker_imports_nothing_that_it_does_not_use() -> None:
    status, said = run("run", "process-simulated", **NAMED, TASKFLUX_HTTP__PORT="eighty")
    assert status == 2  # once everything is imported, its settings are read
    modules = imported(said)
    assert {"aiokafka", "asyncpg", "taskflux.worker.worker"} <= modules
    assert modules & set(UNUSED) == set()


def test_what_an_application_imports_is_loaded_when_it_is_used() -> None:
    program = (
        "import sys, taskflux; print(set(taskflux.__all__) - set(dir(taskflux)), 'pydantic' in sys.modules)\n"
        "from taskflux import *; print(set(taskflux.__all__) - set(globals()), 'pydantic' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["set() False", "set() True"]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("run", "nosuch"), 1, "Error: there is no handler 'nosuch': choose dlq-sink, "),
        (("run", "nosuch_app.tasks"), 1, "Error: 'nosuch_app.tasks' cannot be imported: "),
        (("run", "relay"), 2, "taskflux run relay: the settings are wrong.\nTASKFLUX_HTTP__PORT: "),
    ],
)
@pytest.mark.parametrize("environment", [NAMED, {}], ids=["servers named", "servers not named"])
def test_a_deployment_that_cannot_run_ends_alike_whether_or_not_its_servers_are_named(
    words: tuple[str, ...], status: int, says: str, environment: dict[str, str]
) -> None:
    ended, said = run(*words, **environment, TASKFLUX_HTTP__PORT="eighty")
    told = re.sub(r"^import time:.*\n", "", said, flags=re.MULTILINE)
    assert (ended, says in told, "Traceback" in told) == (status, True, False), told


@pytest.mark.parametrize(
    "words", [("run", "--help"), ("run", "relay", "--topic", "x"), ("--version",), ("run",), ("nosuch",)]
)
def test_every_other_command_line_is_read_by_the_command(words: tuple[str, ...]) -> None:
    _, said = run(*words, **NAMED)
    assert "taskflux.cli" in imported(said)
