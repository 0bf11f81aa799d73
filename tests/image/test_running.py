"""The image as the chart runs it: uid 65532, a read-only root, no capabilities, 256 MiB."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import pytest

from taskflux.local.ports import LOOPBACK, free_port
from taskflux.stream.settings import KafkaSettings
from tests.conftest import NewDatabase
from tests.image.engine import Container, Engine
from tests.image.measures import Measures
from tests.keys import HEADERS, SERVER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PATIENCE = 30.0
NOWHERE = {
    "TASKFLUX_POSTGRES__DSN": f"postgresql://nobody@{LOOPBACK}:1/nothing",
    "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": f"{LOOPBACK}:1",
}
STATUS = """
import json, os, pathlib
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
def writable(path):
    try:
        pathlib.Path(path, 'probe').write_text('')
    except OSError as error:
        return error.strerror
    return True
print(json.dumps({
    'user': [os.getuid(), os.getgid()],
    'capabilities': [status[name].strip() for name in ('CapEff', 'CapPrm', 'CapBnd')],
    'no_new_privileges': status['NoNewPrivs'].strip(),
    'writable': {path: writable(path) for path in ('/', '/app', '/opt/taskflux', '/var/tmp', '/tmp')},
}))
"""


def test_the_confinement_is_the_one_of_the_chart(engine: Engine, image: str) -> None:
    found = json.loads(engine.output(image, "-c", STATUS, entrypoint="python3"))
    assert found["user"] == [65532, 65532]
    assert set(found["capabilities"]) == {"0000000000000000"}
    assert found["no_new_privileges"] == "1"
    assert found["writable"].pop("/tmp") is True
    assert set(found["writable"].values()) == {"Read-only file system"}


def test_it_prints_its_version(engine: Engine, image: str, measures: Measures) -> None:
    began = time.monotonic()
    assert engine.output(image, "--version").startswith("taskflux ")
    nothing = time.monotonic()
    engine.output(image, entrypoint="true")
    whole, idle = nothing - began, time.monotonic() - nothing
    measures.say("taskflux --version", f"{whole:.2f} s, of which an empty container takes {idle:.2f} s")


def test_it_prints_its_settings_and_masks_secrets(engine: Engine, image: str) -> None:
    dsn = "postgresql://somebody:open-sesame@db/tasks"
    said = engine.output(image, "config", environment={"TASKFLUX_POSTGRES__DSN": dsn, "TASKFLUX_HTTP__PORT": "8123"})
    assert json.loads(said)["http"]["port"] == 8123
    assert "sesame" not in said


def test_wrong_settings_stop_the_start_with_a_sentence(engine: Engine, image: str) -> None:
    with engine.run(image, "run", "ingest", environment={"TASKFLUX_HTTP__PORT": "99999"}) as container:
        assert _until(lambda: not container.running, "it ends")
        assert container.stop() == 2
        assert "TASKFLUX_HTTP__PORT" in container.logs()


def test_ingest_reports_that_it_is_alive_while_its_servers_are_unreachable(engine: Engine, image: str) -> None:
    port = free_port()
    with engine.run(image, "run", "ingest", environment={**NOWHERE, **_listening(port)}) as container:
        assert _until(partial(_answers, port, "/livez"), "it lives", container)
        assert _answers(port, "/readyz")
        answer = httpx.post(
            f"http://{LOOPBACK}:{port}/tasks", json={"payload": "x"}, headers=HEADERS, timeout=20, trust_env=False
        )
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        assert container.stop() == 0


async def test_a_task_succeeds_with_containers_only(
    engine: Engine, image: str, new_database: NewDatabase, kafka_settings: KafkaSettings, measures: Measures
) -> None:
    database = await new_database()
    environment = {
        "TASKFLUX_POSTGRES__DSN": database.dsn.get_secret_value(),
        "TASKFLUX_POSTGRES__POOLER": str(database.pooler).lower(),
        **SERVER,
        "TASKFLUX_KAFKA": kafka_settings.model_copy(
            update={"topic_prefix": f"image-{uuid4().hex[:8]}-"}
        ).model_dump_json(exclude={"sasl_password"}),
    }
    await asyncio.to_thread(_go_the_way, engine, image, environment, measures)


def _go_the_way(engine: Engine, image: str, environment: Mapping[str, str], measures: Measures) -> None:
    engine.output(image, "topics", environment=environment)
    ports = {handler: free_port() for handler in ("ingest", "relay", "process-simulated", "dlq-sink")}
    with ExitStack() as stack:
        containers: dict[str, Container] = {}
        for handler, port in ports.items():
            began = time.monotonic()
            containers[handler] = stack.enter_context(
                engine.run(image, "run", handler, environment={**environment, **_listening(port)})
            )
            _until(partial(_answers, port, "/livez"), f"{handler} lives", containers[handler])
            measures.say(f"{handler} to /livez", f"{time.monotonic() - began:.2f} s, the container's start included")
        for handler, port in ports.items():
            _until(partial(_answers, port, "/readyz"), f"{handler} is ready", containers[handler])
        with httpx.Client(
            base_url=f"http://{LOOPBACK}:{ports['ingest']}", timeout=20, trust_env=False, headers=HEADERS
        ) as client:
            accepted = client.post("/tasks", json={"payload": "through containers"})
            assert accepted.status_code == 202, accepted.text
            address = f"/tasks/{accepted.json()['taskId']}"
            _until(lambda: client.get(address).json()["status"] == "succeeded", "it succeeds", *containers.values())
            assert client.get(address).json()["attempts"] == 1
        measures.say("memory", ", ".join(f"{name} {_resident(each):.0f} MiB" for name, each in containers.items()))
        for handler, container in containers.items():
            assert container.stop() == 0, f"{handler} did not end in good order: {container.logs()[-2000:]}"


def _listening(port: int) -> dict[str, str]:
    return {"TASKFLUX_HTTP__HOST": LOOPBACK, "TASKFLUX_HTTP__PORT": str(port)}


def _answers(port: int, path: str) -> bool:
    try:
        return httpx.get(f"http://{LOOPBACK}:{port}{path}", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _resident(container: Container) -> float:
    """MiB of its first process."""
    status = container.execute("cat", "/proc/1/status")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def _until(condition: Callable[[], Any], what: str, *containers: Container) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return True
        for container in containers:
            assert container.running, f"not seen: {what}; the container ended: {container.logs()[-2000:]}"
        time.sleep(0.05)
    said = "\n".join(container.logs()[-2000:] for container in containers)
    raise AssertionError(f"not within {PATIENCE} s: {what}\n{said}")
