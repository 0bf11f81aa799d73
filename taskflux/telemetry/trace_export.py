"""From spans to an OTLP receiver: bounded in memory and time, and never in the way of the work.

Spans that have ended wait, encoded, in a bounded queue and leave from a thread of their own. While the receiver is away
they are dropped, and one line a minute says how many.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from typing import Final, Protocol

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from taskflux.telemetry import tracing
from taskflux.telemetry.otlp import OtlpClient
from taskflux.telemetry.settings import OtelSettings
from taskflux.telemetry.span_encoding import Encoded, Encoder
from taskflux.version import VERSION

log = logging.getLogger(__name__)

QUEUE: Final = 8192
"""Spans that wait at most; beyond, the newest push the oldest out."""
EXPORT_BATCH: Final = 2048
EXPORT_DELAY: Final = 1.0
"""Seconds that a span waits for others to leave with."""
LAST_EXPORT: Final = 3.0
"""Seconds that a process which ends waits for its last spans to leave."""
TELL_AGAIN: Final = 60.0


def configure(settings: OtelSettings, process: str) -> None:
    """Record spans where an endpoint is set, and export them there.

    Raises:
        Misconfigured: a certificate cannot be read.
    """
    if settings.endpoint is None:
        tracing.install(None)
        return
    tracing.install(Pipeline(settings, process, OtlpClient(settings)))
    log.info("traces are exported", extra={"endpoint": settings.endpoint, "sample_ratio": settings.sample_ratio})


class Client(Protocol):
    """Where encoded requests go."""

    def send(self, request: bytes) -> bool:
        """Whether the receiver took it."""
        ...

    def close(self) -> None:
        """Try nothing again."""
        ...


class Pipeline:
    """Takes spans that have ended, and exports them."""

    def __init__(self, settings: OtelSettings, process: str, client: Client) -> None:
        self.ratio = settings.sample_ratio
        resource = _resource(settings, process)
        self._encoder = Encoder(resource.attributes, VERSION)
        self._client = client
        self._queue: deque[Encoded] = deque(maxlen=QUEUE)  # only an export takes from it
        self._exporting = threading.Lock()
        self._enough = threading.Event()
        self._closing = False
        self._losing = threading.Lock()
        self._lost = 0
        self._told = float("-inf")
        self._thread = threading.Thread(target=self._keep_exporting, name="spans", daemon=True)
        self._thread.start()
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            # A handler's own instrumentation: its spans stand in recorded attempts, and begin no trace by themselves.
            others = TracerProvider(ParentBased(ALWAYS_OFF), resource, shutdown_on_exit=False)
            others.add_span_processor(Foreign(self))
            trace.set_tracer_provider(others)

    def record(self, span: tracing.Span, ended: int) -> None:
        """Export a span that has ended; never waits, and never fails."""
        try:
            self._put(self._encoder.ours(span, ended))
        except (TypeError, ValueError):  # a handler's own attribute that is none: the work is worth more than its span
            self._lose(1)

    def record_foreign(self, span: ReadableSpan) -> None:
        """The same for one of OpenTelemetry's own."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        try:
            self._put(self._encoder.foreign(span))
        except (TypeError, ValueError):  # what it raised would leave the handler's own block
            self._lose(1)

    def _put(self, span: Encoded) -> None:
        if len(self._queue) == QUEUE:
            self._lose(1)
        self._queue.append(span)
        if len(self._queue) >= EXPORT_BATCH and not self._enough.is_set():
            self._enough.set()

    def attach(self, traceparent: str) -> None:
        """Let spans of a handler's own instrumentation stand in this one, for the rest of the asyncio task."""
        context.attach(trace.set_span_in_context(Here(traceparent), Context()))

    def _keep_exporting(self) -> None:
        while not self._closing:
            self._enough.wait(EXPORT_DELAY)
            self._enough.clear()
            self.flush()
        self._client.close()

    def flush(self) -> None:
        """Export what waits now."""
        with self._exporting:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(EXPORT_BATCH, len(self._queue)))]
                if not self._client.send(self._encoder.request(batch)):
                    self._lose(len(batch))
                self._tell_losses()

    def _lose(self, spans: int) -> None:
        with self._losing:
            self._lost += spans

    def _tell_losses(self) -> None:
        if not self._lost or time.monotonic() - self._told < TELL_AGAIN:
            return
        with self._losing:
            lost, self._lost = self._lost, 0
        self._told = time.monotonic()
        log.warning("spans could not be exported", extra={"spans": lost})

    def close(self, seconds: float = LAST_EXPORT) -> None:
        """Export what waits, within a bounded time."""
        self._closing = True
        self._enough.set()
        self._thread.join(seconds)


class Here(NonRecordingSpan):
    """One of our spans, as OpenTelemetry's own know it; read only where there are such."""

    def __init__(self, traceparent: str) -> None:
        self._traceparent = traceparent

    def get_span_context(self) -> SpanContext:
        trace_id, span_id, flags = (int(part, 16) for part in self._traceparent.split("-")[1:4])
        return SpanContext(trace_id, span_id, False, TraceFlags(flags))

    def __repr__(self) -> str:
        return f"Here({self._traceparent!r})"


class Foreign(SpanProcessor):
    """Hands on what others record in this process."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def on_end(self, span: ReadableSpan) -> None:
        self._pipeline.record_foreign(span)


def _resource(settings: OtelSettings, process: str) -> Resource:
    """Who we are. `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` know better, where they are set."""
    ours = {
        "service.name": settings.service_name or f"taskflux-{process}",
        "service.namespace": "taskflux",
        "service.version": VERSION,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())
