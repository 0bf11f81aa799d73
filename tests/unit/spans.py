"""Spans that are recorded in this process, as they are exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from taskflux.telemetry import tracing
from taskflux.telemetry.tracing import TRACE
from tests.integration.tracing.receiver import Receiver, Span

SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


class Spans:
    """What was recorded, as a receiver reads it."""

    def __init__(self, ratio: float) -> None:
        self._exporter = InMemorySpanExporter()
        resource = Resource({"service.name": "test"})
        self.provider = TracerProvider(ParentBased(TraceIdRatioBased(ratio)), resource, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def all(self) -> list[Span]:
        """In the order of their beginning."""
        receiver = Receiver()
        ended = self._exporter.get_finished_spans()
        receiver.take("/v1/traces", {}, encode_spans(ended).SerializeToString())
        return receiver.spans


@contextmanager
def recorded(ratio: float) -> Iterator[Spans]:
    """Record spans of all sampled traces, and of so many of those that nobody has decided about."""
    spans = Spans(ratio)
    tracing.switch_on(spans.provider.get_tracer("test"))
    ours, theirs = TRACE.set(None), context.attach(Context())
    try:
        yield spans
    finally:
        context.detach(theirs)
        TRACE.reset(ours)
        tracing.switch_off()
