"""OpenTelemetry's own variables: what is refused at start, by name. What the others do: integration/tracing."""

from __future__ import annotations

import pytest

from taskflux.telemetry.settings import wrong_otel_variables
from taskflux.worker.settings import WrongSettings, load


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc", "4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "true", "not supported: unset it"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://collector:4318", "not supported: unset it"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "must be a URL"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "must be a number"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "none or gzip or deflate"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp or none"),
        ("OTEL_TRACES_EXPORTER", "console", "otlp or none"),
        ("OTEL_METRICS_EXPORTER", "otlp", "/metrics"),
        ("OTEL_LOGS_EXPORTER", "otlp", "standard error"),
        ("OTEL_TRACES_SAMPLER", "xray", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "from 0 to 1"),
        ("OTEL_PROPAGATORS", "tracecontext,b3", "'b3' is not installed"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "of 1 or more"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1 s", "whole number"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "-1", "of 0 or more"),
        ("OTEL_SDK_DISABLED", "yes", "true or false"),
        ("OTEL_CONFIG_FILE", "otel.yaml", "not supported: unset it"),
        ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "process", "docs/observability.md"),
        ("OTEL_PYTHON_TRACER_PROVIDER", "mine", "not supported: unset it"),
    ],
)
def test_variables_without_effect_are_refused_by_name(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    (complaint,) = wrong_otel_variables()
    assert complaint.startswith(name)
    assert said in complaint
    with pytest.raises(WrongSettings, match=name):
        load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_METRICS_EXPORTER", "none"),
        ("OTEL_LOGS_EXPORTER", "none"),
        ("OTEL_PROPAGATORS", "tracecontext, baggage"),
        ("OTEL_PROPAGATORS", "none"),
        ("OTEL_CONFIG_FILE", ""),
        ("OTEL_COLLECTOR_SERVICE_HOST", "10.0.0.7"),
        ("OTEL_COLLECTOR_SERVICE_PORT_OTLP", "4317"),
        ("OTEL_COLLECTOR_PORT", "tcp://10.0.0.7:4317"),
        ("OTEL_COLLECTOR_PORT_4317_TCP_ADDR", "10.0.0.7"),
    ],
)
def test_variables_that_state_the_default_or_come_from_kubernetes_are_accepted(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert wrong_otel_variables() == []


def test_with_opentelemetry_disabled_its_variables_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert wrong_otel_variables() == []


def test_a_batch_that_no_queue_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "200")
    assert len(wrong_otel_variables()) == 1


def test_a_certificate_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")
    (complaint,) = wrong_otel_variables()
    assert complaint.startswith("OTEL_EXPORTER_OTLP_CERTIFICATE")
    assert "/nowhere/ca.pem" in complaint
