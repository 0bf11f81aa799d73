"""The doctor, the log, `/readyz` and a metric report why Kafka cannot be reached; shown with a real broker."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import trustme
from pydantic import SecretStr

from taskflux.cli.doctor import kafka
from taskflux.cli.doctor.findings import Level
from taskflux.local.ports import free_port
from taskflux.local.processes import Process
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.cluster import KafkaCheckup
from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import OutRecord
from taskflux.stream.producer import NotPublished, Producer
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from taskflux.telemetry import metrics, outages
from taskflux.worker.settings import Settings
from tests.conftest import NewDatabase
from tests.kafka.secured import PASSWORD, USERNAME, SecuredKafka, keys_of

TASKFLUX = Path(sys.executable).with_name("taskflux")
WRONG = "wrong-0b7e"


@dataclass(frozen=True)
class Files:
    """PEM files: what to trust, and what to show."""

    authority: str
    stranger_authority: str
    client: str
    stranger: str


@pytest_asyncio.fixture(scope="module")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[SecuredKafka, Files]]:
    folder = tmp_path_factory.mktemp("secured")
    authority, stranger = trustme.CA(), trustme.CA()
    contents = {
        "ca.pem": authority.cert_pem.bytes(),
        "other-ca.pem": stranger.cert_pem.bytes(),
        "client.pem": keys_of(authority.issue_cert("client.test")),
        "stranger.pem": keys_of(stranger.issue_cert("client.test")),
    }
    for name, content in contents.items():
        await asyncio.to_thread((folder / name).write_bytes, content)
    async with SecuredKafka(folder / "kafka", authority) as broker:
        yield broker, Files(*(str(folder / name) for name in contents))


pytestmark = pytest.mark.usefixtures("no_outages")


def settings_for(broker: SecuredKafka, files: Files, case: str) -> KafkaSettings:
    login = {"sasl_username": USERNAME, "sasl_password": SecretStr(PASSWORD)}
    trust = {"tls_ca_file": files.authority}
    own = {"tls_cert_file": files.client, "tls_key_file": files.client}
    stranger = {"tls_cert_file": files.stranger, "tls_key_file": files.stranger}
    cases: dict[str, tuple[str, str, dict[str, Any]]] = {
        "tls": (broker.at("TLS"), "SSL", trust),
        "mtls": (broker.at("MTLS"), "SSL", trust | own),
        "sasl": (broker.at("SASLTLS"), "SASL_SSL", trust | login),
        "wrong password": (broker.at("SASLTLS"), "SASL_SSL", trust | login | {"sasl_password": SecretStr(WRONG)}),
        "wrong mechanism": (broker.at("SASLTLS"), "SASL_SSL", trust | login | {"sasl_mechanism": "PLAIN"}),
        "login where there is none": (broker.at("TLS"), "SASL_SSL", trust | login),
        "no login": (broker.at("SASLTLS"), "SSL", trust),
        "wrong CA": (broker.at("TLS"), "SSL", {"tls_ca_file": files.stranger_authority}),
        "wrong host name": (broker.at("NAMELESS"), "SSL", trust),
        "no client certificate": (broker.at("MTLS"), "SSL", trust),
        "wrong client certificate": (broker.at("MTLS"), "SSL", trust | stranger),
        "plaintext on a TLS port": (broker.at("TLS"), "PLAINTEXT", {}),
        "TLS on a plaintext port": (broker.bootstrap_servers, "SSL", trust),
        "dead port": (f"127.0.0.1:{free_port()}", "PLAINTEXT", {}),
        "unresolvable name": ("gone.invalid:9092", "PLAINTEXT", {}),
        "unresolvable advertised name": (broker.at("MOVED"), "PLAINTEXT", {}),
    }
    address, protocol, more = cases[case]
    return KafkaSettings(
        bootstrap_servers=address, security_protocol=protocol, partitions=1, replication_factor=1,
        request_timeout=5.0, **more,
    )  # fmt: skip


CAUSES = [
    ("wrong password", "login", f"refused the login of {USERNAME} (Authentication failed", "SASL_PASSWORD"),
    ("wrong mechanism", "mechanism", "does not offer PLAIN", "SASL_MECHANISM"),
    ("login where there is none", "no-login", "accepts no login", "SECURITY_PROTOCOL to SSL"),
    ("no login", "login-required", "may require a login", "SECURITY_PROTOCOL to SASL_SSL"),
    ("wrong CA", "authority", "not trusted (unable to get local issuer certificate)", "TLS_CA_FILE"),
    ("wrong host name", "host-name", "IP address mismatch, certificate is not valid for '127.0.0.1'", "advertised"),
    ("no client certificate", "client-certificate", "requires a client certificate (", "TLS_CERT_FILE"),
    ("wrong client certificate", "client-certificate", "refused the client certificate (", "TLS_CERT_FILE"),
    ("plaintext on a TLS port", "tls-port", "uses TLS, but TASKFLUX_KAFKA__SECURITY_PROTOCOL is", "SSL or SASL_SSL"),
    ("TLS on a plaintext port", "not-tls", "it may not speak TLS", "SECURITY_PROTOCOL to PLAINTEXT"),
    ("dead port", "refused", "nothing listens at 127.0.0.1:", "BOOTSTRAP_SERVERS"),
    ("unresolvable name", "name", "the host name of gone.invalid:9092 cannot be resolved", "BOOTSTRAP_SERVERS"),
    ("unresolvable advertised name", "name", "the host name of broker 1 cannot be resolved", "advertised.listeners"),
]


@pytest.mark.parametrize(("case", "kind", "said", "do"), CAUSES, ids=[each[0] for each in CAUSES])
async def test_the_cause_is_reported_by_the_doctor_the_log_readyz_and_a_metric(
    secured: tuple[SecuredKafka, Files], caplog: pytest.LogCaptureFixture, case: str, kind: str, said: str, do: str
) -> None:
    settings = settings_for(*secured, case)
    counted = metrics.KAFKA_FAILURES.labels(kind)
    before = counted.value
    with caplog.at_level(logging.INFO):
        (finding,) = await kafka.examine(Settings(kafka=settings), [])
        checkup = KafkaCheckup(settings)
        with pytest.raises(KafkaUnavailable) as failure:
            await checkup.brokers()
        await checkup.close()
    assert finding.level is Level.PROBLEM
    assert said in finding.told
    assert do in finding.do
    assert str(failure.value) == finding.told
    assert counted.value == before + 2
    (line,) = [record for record in caplog.records if record.name == outages.log.name]
    assert said in vars(line)["error"]
    assert line.levelno == logging.WARNING
    (waiting,) = outages.waiting()
    assert waiting == f"waiting for Kafka: {vars(line)['error']}"
    everything = "\n".join([finding.told, finding.do, waiting, *map(str, map(vars, caplog.records))])
    assert WRONG not in everything
    assert PASSWORD not in everything


@pytest.mark.parametrize("case", ["tls", "mtls", "sasl"])
async def test_brokers_with_encryption_certificates_or_logins_work(
    secured: tuple[SecuredKafka, Files], case: str
) -> None:
    settings = settings_for(*secured, case)
    await ensure_topics(settings, ["email"])
    producer, consumer = Producer(settings), Consumer(settings, f"group-{case}", "tasks.email")
    await producer.start()
    await consumer.start()
    try:
        (outcome,) = await producer.publish([OutRecord("tasks.email", None, case.encode(), ())])
        assert not isinstance(outcome, NotPublished), outcome
        async with asyncio.timeout(20):
            taken: list[bytes | None] = []
            while case.encode() not in taken:
                taken += [record.value for record in await consumer.fetch(10, 1.0)]
    finally:
        await consumer.stop()
        await producer.stop()
    assert outages.waiting() == []


async def test_a_producer_and_a_consumer_log_a_wrong_password_once_with_the_fix(
    secured: tuple[SecuredKafka, Files], caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(*secured, "wrong password")
    producer, consumer = Producer(settings), Consumer(settings, "group", "tasks.email")
    with caplog.at_level(logging.INFO):
        await producer.start()
        await consumer.start()
        try:
            (outcome,) = await producer.publish([OutRecord("tasks.email", None, b"{}", ())])
            assert await consumer.fetch(10, 2.0) == []
        finally:
            await consumer.stop()
            await producer.stop()
    assert isinstance(outcome, NotPublished)
    assert "Kafka cannot be reached" in outcome.reason
    assert f"refused the login of {USERNAME}" in outcome.reason
    (line,) = [record for record in caplog.records if record.name == outages.log.name]
    assert "SASL_PASSWORD" in vars(line)["do"]


async def test_a_worker_still_starts_and_says_why_it_waits(
    secured: tuple[SecuredKafka, Files], new_database: NewDatabase, tmp_path: Path
) -> None:
    port, kafka_settings = free_port(), settings_for(*secured, "wrong password")
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("TASKFLUX_")} | {
        "TASKFLUX_POSTGRES__DSN": (await new_database()).dsn.get_secret_value(),
        "TASKFLUX_KAFKA": kafka_settings.model_dump_json(exclude={"sasl_password"}),
        "TASKFLUX_KAFKA__SASL_PASSWORD": WRONG,
        "TASKFLUX_HTTP__HOST": "127.0.0.1",
        "TASKFLUX_HTTP__PORT": str(port),
        "TASKFLUX_LOG__FORMAT": "json",
    }
    log = tmp_path / "worker.log"
    worker = Process("worker", [TASKFLUX, "run", "process-simulated"], log=log, env=environment)
    worker.spawn()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            ready = await _until_it_waits(client, worker)
            exposed = (await client.get("/metrics")).text
    finally:
        await worker.stop((signal.SIGTERM, 20.0))
    assert ready.status_code == 200
    assert ready.text.startswith("ok\nwaiting for Kafka: ")
    assert f"refused the login of {USERNAME}" in ready.text
    assert re.search(r'^taskflux_kafka_failures_total\{error="login"\} [1-9]', exposed, re.MULTILINE)
    lines = [json.loads(line) for line in (await asyncio.to_thread(log.read_text)).splitlines()]
    (told,) = [line for line in lines if line["message"] == "waiting for Kafka"]
    assert told["cause"] == "login"
    assert "SASL_PASSWORD" in told["do"]
    assert WRONG not in json.dumps(lines) + ready.text + exposed


async def _until_it_waits(client: httpx.AsyncClient, worker: Process) -> httpx.Response:
    async with asyncio.timeout(60):
        while True:
            assert worker.running, worker.last_words()
            try:
                answer = await client.get("/readyz")
            except httpx.TransportError:
                pass
            else:
                if "waiting" in answer.text and answer.status_code == 200:
                    return answer
            await asyncio.sleep(0.1)
