"""From spans to an OTLP receiver: bounded in memory and time, and never in the way of the work.

Spans wait in a bounded queue and leave from a thread of their own. While the receiver is away they are dropped, and
one line a minute says how many.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from handlers.runtime import tracing
from handlers.runtime.telemetry_settings import OtelSettings
from handlers.runtime.version import VERSION

log = logging.getLogger(__name__)

QUEUE: Final = 8192
"""Spans that wait at most; beyond, the newest push the oldest out."""
EXPORT_BATCH: Final = 512
EXPORT_DELAY: Final = 1.0
"""Seconds that a span waits for others to leave with."""
EXPORT_TIMEOUT: Final = 5.0
LAST_EXPORT: Final = 3.0
"""Seconds that a process which ends waits for its last spans to leave."""
TELL_AGAIN: Final = 60.0
MOST_LINKS: Final = 1024

_KINDS: Final = {kind.name: kind for kind in SpanKind}
_OK: Final = Status(StatusCode.UNSET)
_FAILED: Final = Status(StatusCode.ERROR)


def configure(settings: OtelSettings, process: str) -> None:
    """Record spans where an endpoint is set, and export them there."""
    if settings.endpoint is None:
        tracing.install(None)
        return
    tracing.install(Pipeline(settings, process))
    log.info("traces are exported", extra={"endpoint": settings.endpoint, "sample_ratio": settings.sample_ratio})


class Pipeline:
    """Takes spans that have ended, and exports them."""

    def __init__(self, settings: OtelSettings, process: str, processor: SpanProcessor | None = None) -> None:
        self.ratio = settings.sample_ratio
        self._resource = _resource(settings, process)
        self._scope = InstrumentationScope("taskflux", VERSION)
        self._processor = processor or BatchSpanProcessor(
            Exporter(settings),
            max_queue_size=QUEUE,
            schedule_delay_millis=EXPORT_DELAY * 1000,
            max_export_batch_size=EXPORT_BATCH,
        )
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            # A handler's own instrumentation: its spans stand in recorded attempts, and begin no trace by themselves.
            others = TracerProvider(ParentBased(ALWAYS_OFF), self._resource, shutdown_on_exit=False)
            others.add_span_processor(self._processor)
            trace.set_tracer_provider(others)

    def record(self, span: tracing.Span, ended: int) -> None:
        """Export a span that has ended; never waits."""
        self._processor.on_end(
            ReadableSpan(
                span.name,
                _context(span.traceparent, is_remote=False),
                _context(span.parent) if span.parent else None,
                self._resource,
                span.attributes,
                [Event(name, about, at) for name, at, about in span.events],
                [Link(_context(each)) for each in span.links[:MOST_LINKS]],
                _KINDS[span.kind],
                status=_OK if span.failure is None else _FAILED,
                start_time=span.began,
                end_time=ended,
                instrumentation_scope=self._scope,
            )
        )

    def close(self, seconds: float = LAST_EXPORT) -> None:
        """Export what waits, within a bounded time."""
        closing = threading.Thread(target=self._processor.shutdown, name="last-spans", daemon=True)
        closing.start()
        closing.join(seconds)


def _context(traceparent: str, *, is_remote: bool = True) -> SpanContext:
    """A traceparent as OpenTelemetry knows it."""
    trace_id, span_id, flags = int(traceparent[3:35], 16), int(traceparent[36:52], 16), int(traceparent[53:55], 16)
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(flags))


class Exporter(SpanExporter):
    """OTLP over HTTP; its trouble is one line a while."""

    def __init__(self, settings: OtelSettings) -> None:
        # It tells its trouble at every try; we do, now and then.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._exporter = OTLPSpanExporter(settings.traces_url, headers=headers, timeout=EXPORT_TIMEOUT)
        self._lost = 0
        self._told = float("-inf")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._lost += len(spans)
            if time.monotonic() - self._told >= TELL_AGAIN:
                log.warning("spans could not be exported", extra={"spans": self._lost})
                self._lost, self._told = 0, time.monotonic()
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _resource(settings: OtelSettings, process: str) -> Resource:
    """Who we are. `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` know better, where they are set."""
    ours = {
        "service.name": settings.service_name or f"taskflux-{process}",
        "service.namespace": "taskflux",
        "service.version": VERSION,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())
