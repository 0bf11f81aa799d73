"""Spans as OTLP carries them: the protobuf messages of opentelemetry-proto.

A span becomes bytes when it ends. What waits to be exported are bytes alone: small, and nothing that the garbage
collector would go through again and again. A message is the concatenation of its encoded parts, so what all spans of
an operation have in common is encoded once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status
from opentelemetry.sdk.trace import ReadableSpan

from handlers.providers.calls import Value
from handlers.runtime import tracing

MOST_LINKS: Final = 1024

_RESOURCE_SPANS: Final = ExportTraceServiceRequest.RESOURCE_SPANS_FIELD_NUMBER
_SCOPE_SPANS: Final = ResourceSpans.SCOPE_SPANS_FIELD_NUMBER
_SPANS: Final = ScopeSpans.SPANS_FIELD_NUMBER
_OF_A_ROOT: Final = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_OF_ANOTHER: Final = _OF_A_ROOT | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_FAILED: Final = {"code": Status.STATUS_CODE_ERROR}


class Encoded(NamedTuple):
    """A span, and what stands before all spans of its scope."""

    scope: bytes
    span: bytes


class Encoder:
    """Encodes spans that come from one resource."""

    def __init__(self, resource: Mapping[str, Any], version: str) -> None:
        self._resource = ResourceSpans(resource=Resource(attributes=_attributes(resource))).SerializeToString()
        scope = InstrumentationScope(name="taskflux", version=version)
        self._scope = ScopeSpans(scope=scope).SerializeToString()

    def ours(self, span: tracing.Span, ended: int) -> Encoded:
        """One of our own, which ended then (nanoseconds since 1970).

        Raises:
            ValueError, TypeError: an attribute is no `Value`, or nothing that protobuf can carry.
        """
        operation = span.operation
        if not operation.encoded:
            operation.encoded = _common(operation)
        own, parent = span.traceparent, span.parent
        fields: dict[str, Any] = {
            "trace_id": bytes.fromhex(own[3:35]),
            "span_id": bytes.fromhex(own[36:52]),
            "parent_span_id": bytes.fromhex(parent[36:52]) if parent else None,
            "start_time_unix_nano": span.began,
            "end_time_unix_nano": ended,
            "flags": _OF_ANOTHER if parent else _OF_A_ROOT,
            "attributes": _attributes(span.attributes),
        }
        if span.links:
            fields["links"] = [
                {"trace_id": bytes.fromhex(to[3:35]), "span_id": bytes.fromhex(to[36:52]), "flags": _OF_ANOTHER}
                for to in span.links[:MOST_LINKS]
            ]
            fields["dropped_links_count"] = max(0, len(span.links) - MOST_LINKS)
        if span.events:
            fields["events"] = [
                {"name": name, "time_unix_nano": at, "attributes": _attributes(about)}
                for name, at, about in span.events
            ]
        if span.failure is not None:
            fields["status"] = _FAILED
        return Encoded(self._scope, _field(_SPANS, operation.encoded + Span(**fields).SerializeToString()))

    def foreign(self, span: ReadableSpan) -> Encoded:
        """One of OpenTelemetry's own, from the same resource."""
        (theirs,) = encode_spans([span]).resource_spans[0].scope_spans
        scope = ScopeSpans(scope=theirs.scope, schema_url=theirs.schema_url)
        return Encoded(scope.SerializeToString(), _field(_SPANS, theirs.spans[0].SerializeToString()))

    def request(self, spans: Iterable[Encoded]) -> bytes:
        """An ExportTraceServiceRequest with all of them."""
        scopes: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for scope, span in spans:
            scopes[scope].append(span)
        inner = [_field(_SCOPE_SPANS, scope + b"".join(within)) for scope, within in scopes.items()]
        return _field(_RESOURCE_SPANS, self._resource + b"".join(inner))


def _common(operation: tracing.Operation) -> bytes:
    """What stands in every span of it."""
    kind = Span.SpanKind.Value(f"SPAN_KIND_{operation.kind}")
    encoded: bytes = Span(
        name=operation.name, kind=kind, attributes=_attributes(operation.attributes)
    ).SerializeToString()
    return encoded


def _attributes(values: Mapping[str, Value]) -> list[Any]:
    return [{"key": name, "value": {_FIELDS[type(value)]: value}} for name, value in values.items()]


class _Fields(dict[type, str]):
    """Where an AnyValue carries a value of a type; subclasses (of `str`, say) as what they derive from."""

    def __missing__(self, kind: type) -> str:
        for known in (bool, int, float, str):
            if issubclass(kind, known):
                return self[known]
        raise TypeError(f"{kind.__name__} is no type of an attribute's value")


_FIELDS: Final = _Fields({bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"})


def _field(number: int, message: bytes) -> bytes:
    """A message as a field of another: https://protobuf.dev/programming-guides/encoding/#length-types."""
    size, prefix = len(message), bytearray((number << 3 | 2,))
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + message
