"""The services of docker-compose.yaml, each with its own command and variables, against servers of this machine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from taskflux.local.ports import LOOPBACK, free_port
from taskflux.local.processes import Process, run
from taskflux.local.servers import Broker, PostgresServer, ValkeyServer
from taskflux.local.supervisor import Inbox, Program
from tests.k8s.files import compose_services, of_taskflux

pytestmark = pytest.mark.timeout(180)

PATIENCE: Final = 60.0
POLL: Final = 0.1
SETTLED: Final = {"succeeded", "dead", "uncertain", "cancelled"}
# What the embedded broker asks for; Apache Kafka needs none of it.
OF_THE_BROKER: Final = {
    "TASKFLUX_KAFKA__TANSU": "true",
    "TASKFLUX_KAFKA__IDEMPOTENT": "false",
    "TASKFLUX_KAFKA__REPLICATION_FACTOR": "1",
}
MIXED: Final = "task-topic"


@dataclass(frozen=True)
class Running:
    """Everything that was started, and where it answers."""

    ports: Mapping[str, int]
    kafka: str
    inbox: Inbox

    def url(self, name: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[name]}"


def _environment(service: Mapping[str, Any], addresses: Mapping[str, str], port: int) -> dict[str, str]:
    """The service's variables, its servers' names replaced by where they are here."""
    given = {name: str(value) for name, value in service["environment"].items()}
    for name, value in addresses.items():
        if name in given:
            given[name] = value
    local = {"TASKFLUX_HTTP__HOST": LOOPBACK, "TASKFLUX_HTTP__PORT": str(port)}
    return {"PATH": os.environ["PATH"], **given, **OF_THE_BROKER, **local}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    directory = tmp_path_factory.mktemp("compose")
    async with AsyncExitStack() as stack:
        postgres = PostgresServer(directory / "postgres", settings={"fsync": "off"})
        valkey = ValkeyServer(directory / "valkey")
        broker = Broker(log=directory / "kafka.log")
        inbox = Inbox(
            smtp_port=free_port(),
            http_port=free_port(),
            file=directory / "inbox.sqlite",
            log=directory / "inbox.log",
            environment=os.environ,
        )
        for server in (postgres, valkey, broker, inbox):
            await stack.enter_async_context(server)
        addresses = {
            "TASKFLUX_POSTGRES__DSN": postgres.dsn,
            "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "TASKFLUX_REDIS__URL": valkey.url,
            "TASKFLUX_SMTP__HOST": LOOPBACK,
            "TASKFLUX_SMTP__PORT": str(inbox.smtp_port),
            "TASKFLUX_MSG91__BASE_URL": inbox.url,
        }
        await _make_mixed_topic(broker.bootstrap_servers)
        await _set_up(directory, addresses)
        ports = {name: free_port() for name in of_taskflux()}
        programs = [
            Program(
                name,
                [Path(sys.executable).with_name("taskflux"), *service["command"]],
                port=ports[name],
                log=directory / f"{name}.log",
                environment=_environment(service, addresses, ports[name]),
            )
            for name, service in of_taskflux().items()
        ]
        await asyncio.gather(*(stack.enter_async_context(program) for program in programs))
        yield Running(ports, broker.bootstrap_servers, inbox)


async def _make_mixed_topic(bootstrap: str) -> None:
    """As the service `task-topic` does."""
    arguments = compose_services()["task-topic"]["command"]
    assert f"--topic={MIXED}" in arguments
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(MIXED, num_partitions=4, replication_factor=1)])
    finally:
        await admin.close()


async def _set_up(directory: Path, addresses: Mapping[str, str]) -> None:
    """The service `setup`, its shell included."""
    setup = compose_services()["setup"]
    environment = _environment(setup, addresses, 0)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    argv = [*setup["entrypoint"], *setup["command"]]
    await run(Process("setup", argv, log=directory / "setup.log", env=environment), timeout=PATIENCE)


@pytest_asyncio.fixture(loop_scope="session")
async def api(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.url("ingest"), trust_env=False, timeout=10) as client:
        yield client


async def _followed(api: httpx.AsyncClient, task: Mapping[str, Any]) -> Mapping[str, Any]:
    """The task once it has ended."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while True:
        shown: Mapping[str, Any] = (await api.get(f"/tasks/{task['taskId']}")).raise_for_status().json()
        if shown["status"] in SETTLED:
            return shown
        assert asyncio.get_running_loop().time() < deadline, shown
        await asyncio.sleep(POLL)


@pytest.mark.parametrize(
    "submission",
    [
        {"taskType": "email", "payload": {"to": "ann@example.org", "subject": "Welcome", "body": "Hello"}},
        {"taskType": "sms", "payload": {"mobile": "919812345678", "name": "Ann"}},
        {"payload": "FluxTask's own form"},
    ],
    ids=["email", "sms", "simulated"],
)
async def test_a_task_of_each_type_succeeds(api: httpx.AsyncClient, submission: Mapping[str, Any]) -> None:
    answer = await api.post("/tasks", json=submission)
    assert answer.status_code == 202
    shown = await _followed(api, answer.json())
    assert shown["status"] == "succeeded", shown


async def test_the_mail_and_the_message_are_where_a_person_looks(running: Running, api: httpx.AsyncClient) -> None:
    for submission in (
        {"taskType": "email", "payload": {"to": "bea@example.org", "subject": "Seen", "body": "Hello"}},
        {"taskType": "sms", "payload": {"mobile": "919800000000", "name": "Bea"}},
    ):
        await _followed(api, (await api.post("/tasks", json=submission)).json())
    async with httpx.AsyncClient(base_url=running.inbox.url, trust_env=False) as inbox:
        messages = (await inbox.get("/api/messages")).json()["messages"]
    assert {"bea@example.org", "919800000000"} <= {to for message in messages for to in message["to"]}


async def test_what_can_never_succeed_is_in_the_dead_letters(api: httpx.AsyncClient) -> None:
    doomed = {"payload": {"delayMs": 1, "failRate": 1.0}, "taskType": "simulated", "maxAttempts": 1}
    shown = await _followed(api, (await api.post("/tasks", json=doomed)).json())
    assert shown["status"] == "dead"
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while True:
        letters = (await api.get("/dead-letters", params={"taskType": "simulated"})).json()["items"]
        if any(letter["taskId"] == shown["taskId"] for letter in letters):
            return
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(POLL)


async def test_notify_delivers_at_once(running: Running) -> None:
    async with httpx.AsyncClient(base_url=running.url("notify"), trust_env=False, timeout=30) as notify:
        mail = {"to": "cleo@example.org", "subject": "Now", "body": "Hello"}
        assert (await notify.post("/notifications/email", json=mail)).status_code == 200
        sms = {"mobile": "919811111111", "name": "Cleo"}
        assert (await notify.post("/notifications/sms", json=sms)).status_code == 200


async def test_another_producers_task_is_accepted_from_the_mixed_topic(
    running: Running, api: httpx.AsyncClient
) -> None:
    before = await _succeeded(api)
    producer = AIOKafkaProducer(bootstrap_servers=running.kafka)
    await producer.start()
    try:
        await producer.send_and_wait(MIXED, b'{"taskType": "simulated", "payload": {"delayMs": 1}}')
    finally:
        await producer.stop()
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not await _succeeded(api) - before:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(POLL)


async def _succeeded(api: httpx.AsyncClient) -> set[str]:
    """The ids of the simulated tasks that have succeeded."""
    answer = await api.get("/tasks", params={"taskType": "simulated", "status": "succeeded", "limit": 100})
    return {task["taskId"] for task in answer.raise_for_status().json()["items"]}


async def test_every_handler_serves_its_probes_and_metrics(running: Running) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for name in running.ports:
            for path in ("/livez", "/readyz", "/metrics"):
                assert (await client.get(f"{running.url(name)}{path}")).status_code == 200, (name, path)


async def test_the_stand_in_for_msg91_serves_without_the_embedded_stack(tmp_path: Path) -> None:
    service = compose_services()["msg91"]
    port = free_port()
    arguments = [
        argument.replace("0.0.0.0", LOOPBACK).replace("8025", str(port)).replace("/tmp", str(tmp_path))
        for argument in service["command"]
    ]
    # As in the image, which has no aiosmtpd.
    (tmp_path / "aiosmtpd.py").write_text("raise ImportError('it is not in the image')\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    argv = [sys.executable, *service["entrypoint"][1:], *arguments]
    program = Program("msg91", argv, port=port, log=tmp_path / "log", environment=environment, ready_path="/livez")
    sms = {"template_id": "65f0c0ffee65f0c0ffee65f0", "recipients": [{"mobiles": "919812345678", "name": "Ada"}]}
    async with program, httpx.AsyncClient(base_url=program.url, trust_env=False) as client:
        by_name = {"authkey": "dev-only", "host": "msg91:8025"}
        answer = await client.post("/api/v5/flow/", json=sms, headers=by_name)
        assert answer.json()["type"] == "success"
        assert (await client.get("/", headers={"host": "elsewhere.example"})).status_code == 400
