"""OpenTelemetry's SDK as this process uses it: how spans are sampled, limited, and exported to an OTLP receiver.

Imported only where spans are recorded. Ended spans wait in a bounded queue and are exported by a separate thread; spans
that a receiver refuses are dropped, and one log line a minute says how many.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from threading import Thread
from typing import Any, Final

import requests
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from requests.adapters import HTTPAdapter

from taskflux.telemetry import tracing
from taskflux.telemetry.settings import OtelSettings
from taskflux.version import VERSION

log = logging.getLogger(__name__)

# Defaults, unless OpenTelemetry's own variables are set:
QUEUE: Final = 8192
"""The most spans that wait; beyond that, the newest replace the oldest."""
EXPORT_BATCH: Final = 2048
EXPORT_DELAY: Final = 1.0
"""Seconds that a span waits to be exported together with others."""
EXPORT_SECONDS: Final = 5.0
"""Seconds that one export may take, including its retries."""
MOST_LINKS: Final = 1024

LAST_EXPORT: Final = 3.0
"""Seconds that a process which stops waits for the export of its last spans."""
LOG_EVERY: Final = 60.0

_provider: TracerProvider | None = None


def configure(settings: OtelSettings, process: str) -> None:
    """Record spans from now on, and export them."""
    global _provider  # one process has one
    # It logs every failed export, and may quote what was sent; we log that once a minute.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    logging.getLogger("opentelemetry.sdk").setLevel(logging.WARNING)
    resource, limits = (
        _resource(settings, process),
        SpanLimits(max_links=_unless("OTEL_SPAN_LINK_COUNT_LIMIT", MOST_LINKS)),
    )
    queue = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or QUEUE)
    processor = BatchSpanProcessor(
        _Exporter(settings),
        queue,
        _unless("OTEL_BSP_SCHEDULE_DELAY", EXPORT_DELAY * 1000),
        _unless("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(EXPORT_BATCH, queue)),
    )
    ratio = ParentBased(TraceIdRatioBased(settings.sample_ratio))
    by_variable = os.environ.get("OTEL_TRACES_SAMPLER") and "sample_ratio" not in settings.model_fields_set
    _provider = TracerProvider(None if by_variable else ratio, resource, False, span_limits=limits)
    _provider.add_span_processor(processor)
    tracing.switch_on(_provider.get_tracer("taskflux", VERSION))
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # A handler's own spans are recorded within recorded attempts only, and never begin a trace.
        handlers = TracerProvider(ParentBased(ALWAYS_OFF), resource, False, span_limits=limits)
        handlers.add_span_processor(processor)
        trace.set_tracer_provider(handlers)
    log.info(
        "traces are exported", extra={"endpoint": settings.traces_url, "sampler": _provider.sampler.get_description()}
    )


def close(seconds: float = LAST_EXPORT) -> None:
    """Stop recording, and export the waiting spans within `seconds`."""
    global _provider
    tracing.switch_off()
    provider, _provider = _provider, None
    if provider is not None:
        # A thread, since the SDK waits for half a minute, which cannot be configured.
        last = Thread(target=provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(seconds)


class _Exporter(SpanExporter):
    """OpenTelemetry's exporter; lost spans are counted and logged."""

    def __init__(self, settings: OtelSettings) -> None:
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Transport())
        seconds = float(_variable("TIMEOUT") or EXPORT_SECONDS)
        if limit := os.environ.get("OTEL_BSP_EXPORT_TIMEOUT"):  # which the SDK itself ignores
            seconds = min(seconds, int(limit) / 1000)
        self._otlp = OTLPSpanExporter(
            endpoint=settings.traces_url,
            headers={name: value.get_secret_value() for name, value in settings.headers.items()},
            timeout=seconds,
            session=session,
        )
        self._lost = 0
        self._logged_at = float("-inf")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._otlp.export(spans)
        if result is not SpanExportResult.SUCCESS:
            good = [span for span in spans if _can_be_encoded(span)]
            if len(good) == len(spans) or self._otlp.export(good) is not SpanExportResult.SUCCESS:
                good = []
            self._lost += len(spans) - len(good)
        self._log_losses()
        return result

    def shutdown(self) -> None:
        self._otlp.shutdown()  # type: ignore[no-untyped-call]

    def _log_losses(self) -> None:
        now = time.monotonic()
        if self._lost and now - self._logged_at >= LOG_EVERY:
            log.warning("spans could not be exported", extra={"spans": self._lost})
            self._lost, self._logged_at = 0, now


class _Transport(HTTPAdapter):
    """HTTP settings that the exporter needs but cannot be given."""

    def send(self, request: requests.PreparedRequest, *arguments: Any, **named: Any) -> requests.Response:
        authority = _variable("CERTIFICATE")
        if authority is not None:
            named["verify"] = authority  # REQUESTS_CA_BUNDLE, if set, would override it
        response = super().send(request, *arguments, **named)
        if 300 <= response.status_code < 400:
            response.close()
            raise requests.HTTPError("redirected")  # it is not followed, but would count as a success
        return response


def _can_be_encoded(span: ReadableSpan) -> bool:
    """A span that cannot be encoded (a handler chooses its name) must not lose all others of its batch."""
    try:
        encode_spans([span])
    except ValueError:
        return False
    return True


def _variable(name: str) -> str | None:
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") or None


def _unless(variable: str, value: Any) -> Any:
    """`value`, or None if a variable is set, which the SDK then reads itself."""
    return None if os.environ.get(variable) else value


def _resource(settings: OtelSettings, process: str) -> Resource:
    """Attributes of this process; OpenTelemetry's own variables override our defaults, but not our settings."""
    ours = {
        "service.name": f"taskflux-{process}",
        "service.namespace": "taskflux",
        "service.version": VERSION,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    named = {"service.name": settings.service_name} if settings.service_name else {}
    return Resource.create(ours).merge(OTELResourceDetector().detect()).merge(Resource(named))
