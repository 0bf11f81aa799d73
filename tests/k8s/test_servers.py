"""The dependencies' settings, read by the servers themselves."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from taskflux.local.console import Trouble
from taskflux.local.ports import LOOPBACK, free_port
from taskflux.local.processes import Process
from taskflux.local.servers import PostgresServer, valkey_binary
from tests.chart.crds import Module
from tests.k8s.conftest import Modules
from tests.k8s.files import command_settings, compose_services, dependencies, environment, kafka_properties
from tests.k8s.gotools import MAILPIT
from tests.kafka.broker import KafkaBroker
from tests.kafka.classpath import java, server_classpath

# A setting that names an address or a directory is that of the test.
OF_THE_PLACE: Final = {"listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"}
PATIENCE: Final = 30.0


def _container(name: str) -> Mapping[str, Any]:
    (owner,) = (each for each in dependencies().of("Deployment", "StatefulSet") if each.name == name)
    found: Mapping[str, Any] = owner.spec["template"]["spec"]["containers"][0]
    return found


class _AsInTheManifest(KafkaBroker):
    """Apache Kafka with the manifest's properties, at addresses and in a directory of its own."""

    def __init__(self, data_dir: Path, declared: Mapping[str, str]) -> None:
        super().__init__(data_dir)
        self._declared = declared

    def _properties(self) -> str:
        usual = dict(line.split("=", 1) for line in super()._properties().splitlines())
        place = {name: usual[name] for name in OF_THE_PLACE}
        return "".join(f"{name}={value}\n" for name, value in {**self._declared, **place}.items())


@pytest.fixture(scope="module")
def declared() -> Mapping[str, str]:
    return kafka_properties(environment(_container("kafka")))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def effective(
    declared: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mapping[str, str]]:
    """The settings of a broker that runs with the declared ones, as it tells them itself."""
    try:
        java()
        server_classpath()
    except Trouble as trouble:
        pytest.skip(str(trouble))
    async with _AsInTheManifest(tmp_path_factory.mktemp("kafka") / "kafka", declared) as broker:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        await admin.start()
        try:
            (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, declared["node.id"])])
        finally:
            await admin.close()
    (resource,) = answer.resources
    yield {entry[0]: entry[1] for entry in resource[4]}


@pytest.mark.timeout(240)
async def test_apache_kafka_runs_with_what_the_image_makes_of_the_variables(
    declared: Mapping[str, str], effective: Mapping[str, str]
) -> None:
    unknown = declared.keys() - effective.keys()
    assert unknown == set(), "Kafka ignores what it does not know"
    assert {name: effective[name] for name in declared.keys() - OF_THE_PLACE} == {
        name: value for name, value in declared.items() if name not in OF_THE_PLACE
    }


def test_the_settings_that_name_a_place_are_of_the_form_that_was_tried(declared: Mapping[str, str]) -> None:
    controller = declared["controller.quorum.voters"].partition("@")[2]
    assert declared["controller.quorum.voters"].partition("@")[0] == declared["node.id"]
    assert declared["listeners"] == f"PLAINTEXT://:9092,CONTROLLER://{controller}"
    assert declared["log.dirs"].startswith(_container("kafka")["volumeMounts"][0]["mountPath"] + "/")


@pytest.mark.parametrize("where", ["k8s", "compose"])
async def test_postgresql_takes_its_settings(where: str, tmp_path: Path) -> None:
    arguments = _container("postgres")["args"] if where == "k8s" else compose_services()["postgres"]["command"]
    settings = command_settings(arguments)
    assert settings
    async with PostgresServer(tmp_path / "postgres", settings={**settings, "fsync": "off"}) as server:
        connection = await asyncpg.connect(server.dsn)
        try:
            assert {
                name: await connection.fetchval("SELECT current_setting($1)", name) for name in settings
            } == settings
        finally:
            await connection.close()


@pytest.mark.parametrize("where", ["k8s", "compose"])
async def test_valkey_starts_with_its_arguments(where: str, tmp_path: Path) -> None:
    program, *arguments = _container("valkey")["args"] if where == "k8s" else compose_services()["valkey"]["command"]
    assert program == "valkey-server"
    port = free_port()
    own = ["--port", str(port), "--bind", LOOPBACK]
    process = Process("valkey", [valkey_binary(), *arguments, *own], log=tmp_path / "valkey.log", cwd=tmp_path)
    process.spawn()
    try:
        assert await _asked(port, "CONFIG GET maxmemory-policy", process) == b"allkeys-lru"
        assert await _asked(port, "CONFIG GET save", process) == b""
        assert await _asked(port, "CONFIG GET appendonly", process) == b"no"
    finally:
        await process.stop((signal.SIGTERM, 5.0))


async def _asked(port: int, command: str, process: Process) -> bytes:
    """The value in Valkey's answer, once it answers."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while True:
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            break
        except OSError:
            assert process.running, process.last_words(1000)
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
    try:
        writer.write(f"{command}\r\n".encode())
        lines = [await asyncio.wait_for(reader.readline(), PATIENCE) for _ in range(5)]
        return lines[4].strip()
    finally:
        writer.close()


def test_mailpit_reads_every_variable_that_it_is_given(module: Modules) -> None:
    version: Module = MAILPIT
    assert _container("mailpit")["image"] == f"docker.io/axllent/mailpit:{version.version}"
    read = (module(version) / "cmd" / "root.go").read_text()
    for variables in (environment(_container("mailpit")), compose_services()["mailpit"]["environment"]):
        assert variables
        assert [name for name in variables if f'"{name}"' not in read] == []
