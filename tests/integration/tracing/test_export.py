"""Spans on their way to a receiver that is there, slow, or away."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from taskflux.local.ports import free_port
from taskflux.tasks.errors import Misconfigured
from taskflux.telemetry import trace_export, tracing
from taskflux.telemetry.otlp import AGAIN, OtlpClient
from taskflux.telemetry.settings import OtelSettings
from taskflux.telemetry.trace_export import Pipeline
from tests.integration.system.stack import eventually
from tests.integration.tracing.receiver import Receiver, receiver
from tests.integration.tracing.scene import Scene

SOME = tracing.Operation("a span", "INTERNAL")


@pytest.fixture
def received() -> Iterator[Receiver]:
    with receiver() as kept:
        yield kept


@pytest.fixture(autouse=True)
def _not_traced_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    tracing.close()


def record(number: int = 1) -> None:
    """So many spans."""
    for _ in range(number):
        tracing.Span(SOME, own=tracing.new_traceparent()).end()


def test_a_process_that_ends_sends_its_last_spans_first(received: Receiver) -> None:
    trace_export.configure(OtelSettings(endpoint=received.url, sample_ratio=1.0), "some-handler")
    record(700)
    tracing.close()
    assert len(received.spans) == 700
    assert {span.service for span in received.spans} == {"taskflux-some-handler"}
    assert not tracing.enabled()


def test_who_we_are_may_be_told_by_opentelemetrys_own_variables(
    received: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=shop,k8s.namespace.name=prod")
    trace_export.configure(OtelSettings(endpoint=received.url, sample_ratio=1.0), "relay")
    record()
    tracing.close()
    (span,) = received.spans
    assert span.resource["service.name"] == "mine"
    assert span.resource["service.namespace"] == "shop"
    assert span.resource["k8s.namespace.name"] == "prod"
    assert span.resource["service.instance.id"]


def test_a_receiver_that_is_away_costs_one_line_a_while_and_little_time(caplog: pytest.LogCaptureFixture) -> None:
    settings = OtelSettings(endpoint=f"http://127.0.0.1:{free_port()}", sample_ratio=1.0)
    pipeline = Pipeline(settings, "relay", OtlpClient(settings, timeout=0.2))
    tracing.install(pipeline)
    began = time.monotonic()
    record(3 * trace_export.QUEUE)
    assert time.monotonic() - began < 10  # nobody waited for the receiver
    closing = time.monotonic()
    pipeline.close(0.5)
    assert time.monotonic() - closing < 1.5
    told = [each for each in caplog.records if each.levelno >= logging.WARNING and "export" in each.getMessage()]
    assert len(told) == 1
    assert vars(told[0])["spans"] > 0


def test_a_receiver_that_never_answers_does_not_keep_a_process_from_ending(received: Receiver) -> None:
    with receiver() as slow:
        slow.take = lambda path, headers, body: time.sleep(3) or 200  # type: ignore[method-assign, func-returns-value]
        trace_export.configure(OtelSettings(endpoint=slow.url, sample_ratio=1.0), "relay")
        record()
        began = time.monotonic()
        tracing._pipeline.close(0.3)  # type: ignore[union-attr]
        assert time.monotonic() - began < 1.5


async def test_work_goes_on_while_the_receiver_is_away(scene: Scene) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    before = scene.children.pop("process-simulated")
    before.send(signal.SIGTERM)
    assert await before.wait() == 0
    child = scene.spawn("process-simulated", "unheard", TASKFLUX_OTEL__ENDPOINT=nowhere)
    await scene.ready("unheard")
    tasks = await asyncio.gather(*(scene.submit("simulated", "hello") for _ in range(50)))
    await scene.stack.until_all(tasks, "succeeded", patience=60.0)

    async def told() -> bool:
        return "spans could not be exported" in scene.log("unheard")

    await eventually(told, "the line that says so")
    began = time.monotonic()
    child.send(signal.SIGTERM)
    assert await child.wait() == 0
    assert time.monotonic() - began < 15
    complaints = [line for line in scene.lines("unheard") if line["logger"] == "taskflux.telemetry.trace_export"]
    assert [line["message"] for line in complaints] == ["traces are exported", "spans could not be exported"]
    scene.spawn("process-simulated")
    await scene.ready("process-simulated")


def exported(client: OtlpClient) -> bool:
    """Whether the receiver took a request."""
    try:
        return client.send(b"")
    finally:
        client.close()


@pytest.mark.parametrize("status", sorted(AGAIN))
def test_a_receiver_that_is_busy_is_asked_again(received: Receiver, status: int) -> None:
    received.answers = [status]
    assert exported(OtlpClient(OtelSettings(endpoint=received.url)))
    assert len(received.requests) == 2


@pytest.mark.parametrize("status", [302, 400, 401, 404, 500])
def test_a_receiver_that_refuses_is_not_asked_again(received: Receiver, status: int) -> None:
    received.answers = [status]
    assert not exported(OtlpClient(OtelSettings(endpoint=received.url)))
    assert len(received.requests) == 1


def test_the_receivers_path_and_headers_are_those_of_the_settings(received: Receiver) -> None:
    settings = OtelSettings(endpoint=f"{received.url}/otlp/", headers={"authorization": SecretStr("Bearer abc")})
    assert exported(OtlpClient(settings))
    ((path, headers),) = received.requests
    assert path == "/otlp/v1/traces"
    assert {name.lower(): value for name, value in headers.items()}.items() >= {
        "authorization": "Bearer abc",
        "content-type": "application/x-protobuf",
    }.items()


def test_a_receiver_with_a_private_certificate_is_trusted_by_opentelemetrys_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(served)
    served.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(served)
    client = authority.issue_cert("worker@example.org")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    with receiver(served) as secret:
        settings = OtelSettings(endpoint=secret.url)
        assert not exported(OtlpClient(settings, timeout=0.5))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "ca.pem"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", str(tmp_path / "client.pem"))
        assert exported(OtlpClient(settings))


def test_a_certificate_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")
    with pytest.raises(Misconfigured, match=r"OTEL_EXPORTER_OTLP.*/nowhere/ca.pem"):
        OtlpClient(OtelSettings(endpoint="https://127.0.0.1:1"))


def test_untraced_opentelemetry_is_not_even_loaded() -> None:
    script = (
        "import sys, json\n"
        "from taskflux.handlers import dlq_sink, ingest, notify, process_email, process_sms, relay, router\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('opentelemetry')]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(done.stdout) == []
