"""Traces, after OpenTelemetry's messaging conventions; without an endpoint this costs nothing.

The trace context of a task stands on its row (`traceparent`, W3C), so that retries and replays belong to the trace of
the request that made it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

from handlers.runtime.settings import OtelSettings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

Attributes = Mapping[str, str | int | float | bool]

_tracer: Tracer | None = None
_UNTRACED: Final = nullcontext()
SYSTEM: Final[Attributes] = {"messaging.system": "kafka"}


def configure(settings: OtelSettings, process: str) -> None:
    """Export spans where an endpoint is set."""
    global _tracer  # one process has one tracer
    if settings.endpoint is None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": process}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{settings.endpoint.rstrip('/')}/v1/traces")))
    _tracer = provider.get_tracer("taskflux")


def new_traceparent() -> str:
    """A fresh, unsampled trace context: every task has a trace id, traced or not."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def trace_id(traceparent: str | None) -> str:
    """The trace id in a traceparent, or nothing."""
    return traceparent[3:35] if traceparent else ""


def process_span(task_type: str, traceparent: str | None, attributes: Attributes) -> AbstractContextManager[None]:
    """The span of one attempt, a child of the request that made the task."""
    return _UNTRACED if _tracer is None else _process_span(_tracer, task_type, traceparent, attributes)


@contextmanager
def _process_span(tracer: Tracer, task_type: str, traceparent: str | None, attributes: Attributes) -> Iterator[None]:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent or ""})
    name = f"process tasks.{task_type}"
    with tracer.start_as_current_span(name, context, SpanKind.CONSUMER, {**SYSTEM, **attributes}):
        yield
