"""Exporting spans to a receiver that is available, slow, or unreachable, and OpenTelemetry's own variables for it."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from taskflux.local.ports import free_port
from taskflux.telemetry import trace_export, tracing
from taskflux.telemetry.settings import OtelSettings
from tests.integration.system.stack import eventually
from tests.integration.tracing.receiver import Receiver, Span, receiver
from tests.integration.tracing.scene import Scene

SOME = tracing.Operation("a span", "INTERNAL", {"a": 1, "b": "long"})
BUSY = (429, 502, 503, 504)
PATIENCE = 60.0
"""Seconds that a receiver which takes what it is sent may need, on the busiest machine."""


@pytest.fixture
def received() -> Iterator[Receiver]:
    with receiver() as kept:
        yield kept


@pytest.fixture(autouse=True)
def _not_traced_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    close()


def configured(url: str | None, process: str = "relay", **settings: Any) -> None:
    """Everything is recorded and goes there."""
    trace_export.configure(OtelSettings.model_validate({"endpoint": url, "sample_ratio": 1.0, **settings}), process)


def record(number: int = 1) -> None:
    """So many spans."""
    for _ in range(number):
        tracing.start(SOME, parent=None).end()


def close(seconds: float = PATIENCE) -> None:
    trace_export.close(seconds)


@contextmanager
def withheld(receiver: Receiver) -> Iterator[threading.Event]:
    """Whatever `receiver` is sent is answered after the block only; the event is set once it was sent something."""
    asked, over = threading.Event(), threading.Event()
    take = receiver.take

    def late(path: str, headers: Mapping[str, str], body: bytes) -> int:
        asked.set()
        assert over.wait(10 * PATIENCE)
        return take(path, headers, body)

    receiver.take = late  # type: ignore[method-assign]
    try:
        yield asked
    finally:
        over.set()


def nothing_is_under_way() -> None:
    """Return once what `close` did not wait for has ended, so that it says nothing while another test runs."""
    for thread in threading.enumerate():
        if thread.name == "last spans":
            thread.join(PATIENCE)


def exported(url: str | None, caplog: pytest.LogCaptureFixture, **settings: Any) -> bool:
    """Whether the receiver took a span."""
    configured(url, **settings)
    record()
    close()
    return "spans could not be exported" not in caplog.messages


def test_a_process_exports_its_last_spans_before_it_ends(received: Receiver) -> None:
    configured(received.url, "some-handler")
    record(700)
    close()
    assert len(received.spans) == 700
    assert {span.service for span in received.spans} == {"taskflux-some-handler"}
    assert not tracing.on


async def test_an_unreachable_receiver_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    configured(f"http://127.0.0.1:{free_port()}")
    record(trace_export.QUEUE + 1000)  # more than it keeps

    def told() -> list[logging.LogRecord]:
        return [each for each in caplog.records if each.levelno >= logging.WARNING and "export" in each.getMessage()]

    async def once() -> bool:
        return bool(told())

    await eventually(once, "the line that says so")
    close()
    nothing_is_under_way()
    (line,) = told()
    assert vars(line)["spans"] > 0


def test_a_receiver_that_never_answers_delays_neither_work_nor_shutdown(
    received: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_export, "EXPORT_SECONDS", 10 * PATIENCE)
    with withheld(received) as asked:
        configured(received.url)
        record(trace_export.QUEUE + 1000)  # more than it keeps
        assert asked.wait(PATIENCE)
        record(trace_export.QUEUE)
        close(0.3)
        assert received.requests == []  # none is answered, and we are here
    nothing_is_under_way()


async def test_work_goes_on_while_the_receiver_is_unreachable(scene: Scene) -> None:
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
    child.send(signal.SIGTERM)
    async with asyncio.timeout(25):  # the SDK by itself waits for half a minute
        assert await child.wait() == 0
    complaints = [line for line in scene.lines("unheard") if line["logger"] == "taskflux.telemetry.trace_export"]
    assert [line["message"] for line in complaints] == ["traces are exported", "spans could not be exported"]
    scene.spawn("process-simulated")
    await scene.ready("process-simulated")


@pytest.mark.parametrize("status", BUSY)
def test_an_export_to_a_busy_receiver_is_retried(
    received: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    received.answers = [status]
    assert exported(received.url, caplog)
    assert len(received.requests) == 2


@pytest.mark.parametrize("status", [302, 400, 401, 404, 500])
def test_an_export_that_the_receiver_refuses_is_not_retried(
    received: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    received.answers = [status]
    assert not exported(received.url, caplog)
    assert len(received.requests) == 1


def test_the_receivers_path_and_headers_are_those_of_the_settings(
    received: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    assert exported(f"{received.url}/otlp/", caplog, headers={"authorization": SecretStr("Bearer abc")})
    ((path, headers),) = received.requests
    assert path == "/otlp/v1/traces"
    assert {name.lower(): value for name, value in headers.items()}.items() >= {
        "authorization": "Bearer abc",
        "content-type": "application/x-protobuf",
    }.items()


def test_a_span_that_cannot_be_encoded_is_dropped_alone(received: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    configured(received.url)
    tracing.start(tracing.Operation("\ud800", "INTERNAL"), parent=None).end()
    record()
    close()
    assert [span.name for span in received.spans] == ["a span"]
    (told,) = [each for each in caplog.records if each.getMessage() == "spans could not be exported"]
    assert vars(told)["spans"] == 1


def test_more_links_than_a_receiver_takes_are_dropped(received: Receiver) -> None:
    configured(received.url)
    links = [f"00-{number:032x}-{number:016x}-01" for number in range(1, trace_export.MOST_LINKS + 11)]
    tracing.start(SOME, parent=None, links=links).end()
    close()
    (span,) = received.spans
    assert len(span.links) == trace_export.MOST_LINKS


# OpenTelemetry's own variables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_SDK_DISABLED", "true"), ("OTEL_SDK_DISABLED", "True"), ("OTEL_TRACES_EXPORTER", "none")],
)
def test_a_variable_may_switch_recording_off(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = OtelSettings(endpoint="http://collector:4318")
    assert settings.wanted
    monkeypatch.setenv(variable, value)
    assert not settings.wanted


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}, "http://collector:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/mine"}, "http://collector:4318/mine"),
    ],
)
def test_a_variable_may_name_the_receiver(
    environment: Mapping[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not OtelSettings().wanted
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert OtelSettings().wanted
    assert OtelSettings().traces_url == url
    assert OtelSettings(endpoint="http://ours:4318").traces_url == "http://ours:4318/v1/traces"


def taken(received: Receiver, **settings: Any) -> Span:
    """A span with all that can be limited, as it was exported."""
    configured(received.url, **settings)
    with tracing.start(SOME, parent=None, links=[f"00-{'1' * 32}-{each * 16}-01" for each in "12"]) as span:
        span.raised(ValueError())
        span.raised(KeyError())
    close()
    (kept,) = received.spans
    return kept


def test_opentelemetrys_own_variables_may_name_the_process(received: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=shop,k8s.namespace.name=prod")
    span = taken(received)
    assert span.resource["service.name"] == "mine"
    assert span.resource["service.namespace"] == "shop"
    assert span.resource["k8s.namespace.name"] == "prod"
    assert span.resource["service.instance.id"]


def test_a_setting_overrides_a_variable(received: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert taken(received, service_name="ours").service == "ours"


@pytest.mark.parametrize(
    ("sampler", "argument", "fresh", "callers"),
    [
        ("always_on", None, True, True),
        ("always_off", None, False, False),
        ("traceidratio", "1", True, True),
        ("traceidratio", "0", False, False),
        ("parentbased_always_on", None, True, False),
        ("parentbased_always_off", None, False, False),
        ("parentbased_traceidratio", "1.0", True, False),
    ],
)
def test_a_variable_may_choose_the_sampler(
    received: Receiver,
    sampler: str,
    argument: str | None,
    fresh: bool,
    callers: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    if argument is not None:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    trace_export.configure(OtelSettings(endpoint=received.url), "ingest")
    unsampled = [(b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")]
    assert tracing.sampled(tracing.request([], {}).traceparent) is fresh
    assert tracing.sampled(tracing.request(unsampled, {}).traceparent) is callers


@pytest.mark.parametrize(
    ("variable", "value", "attributes", "links", "events"),
    [
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1", 1, 2, 2),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "1", 1, 2, 2),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "1", 3, 1, 2),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "1", 3, 2, 1),
    ],
)
def test_a_variable_may_limit_the_parts_of_a_span(
    received: Receiver,
    variable: str,
    value: str,
    attributes: int,
    links: int,
    events: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    configured(received.url)
    with tracing.start(SOME, {"c": 3}, parent=None, links=[f"00-{'1' * 32}-{each * 16}-01" for each in "12"]) as span:
        span.raised(ValueError())
        span.raised(KeyError())
    close()
    (kept,) = received.spans
    assert (len(kept.attributes), len(kept.links), len(kept.events)) == (attributes, links, events)


def test_a_variable_may_limit_the_attributes_of_an_event(received: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "1")
    assert {len(about) for _, about in taken(received).events} == {1}


@pytest.mark.parametrize("variable", ["OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"])
def test_a_variable_may_limit_the_length_of_values(
    received: Receiver, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "2")
    assert taken(received).attributes["b"] == "lo"


def test_variables_may_set_the_sizes_of_batch_and_queue(received: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "5")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with withheld(received) as asked:
        configured(received.url)
        record(2)
        assert asked.wait(PATIENCE)
        record(28)
    close()
    assert len(received.spans) == 2 + 5  # what was on its way, and what waited
    assert len(received.requests) == 1 + 3


async def test_a_variable_may_set_the_delay_of_exports(received: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    configured(received.url)
    record()
    await asyncio.sleep(1.5 * trace_export.EXPORT_DELAY)
    assert received.spans == []
    close()
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    configured(received.url)
    record()

    async def there() -> bool:
        return len(received.spans) == 2

    await eventually(there, "the second span")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_BSP_EXPORT_TIMEOUT", "200"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0.2"),
    ],
)
def test_a_variable_may_set_the_timeout_of_exports(
    received: Receiver, variable: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(trace_export, "EXPORT_SECONDS", 10 * PATIENCE)
    with withheld(received):
        assert not exported(received.url, caplog)


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
def test_a_variable_may_give_headers(
    received: Receiver, variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, "x-token=abc,x-tenant=mine")
    assert exported(received.url, caplog, headers={"x-token": "ours"})
    ((_, headers),) = received.requests
    assert (headers["x-token"], headers["x-tenant"]) == ("ours", "mine")


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"])
def test_a_variable_may_choose_compression(
    received: Receiver, variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, "gzip")
    asked = received.take
    received.take = lambda path, headers, body: asked(path, headers, gzip.decompress(body))  # type: ignore[method-assign]
    assert exported(received.url, caplog)
    assert len(received.spans) == 1


def test_a_receiver_with_a_private_certificate_is_trusted_by_opentelemetrys_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(served)
    served.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(served)
    client = authority.issue_cert("worker@example.org")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    with receiver(served) as secret:
        assert not exported(secret.url, caplog)
        caplog.clear()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "ca.pem"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", str(tmp_path / "client.pem"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(tmp_path / "client.key"))
        assert exported(secret.url, caplog)


HANDLER = """
import json, os
from opentelemetry import trace
from taskflux.telemetry import trace_export, tracing
from taskflux.telemetry.settings import OtelSettings

trace_export.configure(OtelSettings(sample_ratio=1.0), "mine")
place = trace.SpanContext(1, 2, True)
with trace.get_tracer("some.library").start_as_current_span("in no attempt"):
    pass
caller = [(b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
with tracing.request(caller, {}) as request:
    link = trace.Link(place, {"a": 1, "b": 2})
    with trace.get_tracer("some.library").start_as_current_span("theirs", links=[link]):
        print(json.dumps([request.traceparent, dict(tracing.outgoing())]))
trace_export.close()
"""


def handler(received: Receiver, **environment: str) -> tuple[str, Mapping[str, str]]:
    """A request in a process of its own, within which a handler opens a span by OpenTelemetry's API."""
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": received.url, **environment}
    done = subprocess.run([sys.executable, "-c", HANDLER], capture_output=True, text=True, check=True, env=environment)
    traceparent, outgoing = json.loads(done.stdout)
    return traceparent, outgoing


def test_a_handlers_own_span_is_a_child_of_ours_and_begins_no_trace(received: Receiver) -> None:
    traceparent, outgoing = handler(received, OTEL_LINK_ATTRIBUTE_COUNT_LIMIT="1")
    assert outgoing == {"traceparent": traceparent}
    ours, theirs = received.spans
    assert (ours.parent, ours.trace) == ("00f067aa0ba902b7", "4bf92f3577b34da6a3ce929d0e0e4736")
    assert (theirs.name, theirs.parent, theirs.trace, theirs.service) == (
        "theirs",
        ours.id,
        ours.trace,
        "taskflux-mine",
    )
    assert received.raw[0].count(b"\x01b") + received.raw[0].count(b"\x01a") >= 1


@pytest.mark.parametrize("propagators", ["none", "baggage"])
def test_a_callers_trace_is_followed_as_the_propagators_say(received: Receiver, propagators: str) -> None:
    traceparent, outgoing = handler(received, OTEL_PROPAGATORS=propagators)
    assert traceparent[3:35] != "4bf92f3577b34da6a3ce929d0e0e4736"
    assert outgoing == {}
    assert received.spans[0].parent == ""
