"""Spans as OTLP carries them: https://github.com/open-telemetry/opentelemetry-proto.

A span becomes bytes when it ends. What waits to be exported are bytes alone: small, and nothing that the garbage
collector would go through again and again. A message is the concatenation of its encoded parts: what all spans of an
operation have in common is encoded once, and what differs from span to span is written as it stands on the wire.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from struct import Struct
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status
from opentelemetry.sdk.trace import ReadableSpan

from taskflux.telemetry import tracing
from taskflux.telemetry.calls import Value
from taskflux.telemetry.protobuf import Wire, lengthy, tag, varint

MOST_LINKS: Final = 1024


Encoded = tuple[bytes, bytes]
"""What stands before all spans of a scope, and a span of it."""


class Encoder:
    """Encodes spans that come from one resource."""

    def __init__(self, resource: Mapping[str, Any], version: str) -> None:
        self._resource = _RESOURCE(_attributes(_OF_RESOURCE, resource))
        scope = InstrumentationScope(name="taskflux", version=version)
        self._scope = ScopeSpans(scope=scope).SerializeToString()

    def ours(self, span: tracing.Span, ended: int) -> Encoded:
        """One of our own, which ended then (nanoseconds since 1970).

        Raises:
            ValueError, TypeError: an attribute is no `Value`, or nothing that protobuf can carry.
        """
        operation, own, parent = span.operation, span.traceparent, span.parent
        if not operation.encoded:
            operation.encoded = _common(operation)
        ids = _ROOT % (own[3:35], own[36:52]) if parent is None else _CHILD % (own[3:35], own[36:52], parent[36:52])
        parts = [
            operation.encoded,
            bytes.fromhex(ids),
            _TIMES.pack(_START, span.began, _END, ended),
            _attributes(_OF_SPAN, span.attributes),
        ]
        if span.links:
            parts.append(_links(span.links))
        for name, at, about in span.events:
            event = Span.Event(name=name, time_unix_nano=at).SerializeToString()
            parts.append(_EVENT(event + _attributes(_OF_EVENT, about)))
        if span.failure is not None:
            parts.append(_FAILED)
        return self._scope, _SPAN(b"".join(parts))

    def foreign(self, span: ReadableSpan) -> Encoded:
        """One of OpenTelemetry's own, from the same resource."""
        (theirs,) = encode_spans([span]).resource_spans[0].scope_spans
        scope = ScopeSpans(scope=theirs.scope, schema_url=theirs.schema_url)
        return scope.SerializeToString(), _SPAN(theirs.spans[0].SerializeToString())

    def request(self, spans: Iterable[Encoded]) -> bytes:
        """An ExportTraceServiceRequest with all of them."""
        scopes: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for scope, span in spans:
            scopes[scope].append(span)
        inner = [_SCOPE_SPANS(scope + b"".join(within)) for scope, within in scopes.items()]
        return _RESOURCE_SPANS(self._resource + b"".join(inner))


def _common(operation: tracing.Operation) -> bytes:
    """What stands in every span of it."""
    span = Span(name=operation.name, kind=Span.SpanKind.Value(f"SPAN_KIND_{operation.kind}"))
    encoded: bytes = span.SerializeToString()
    return encoded + _attributes(_OF_SPAN, operation.attributes)


def _links(traceparents: tuple[str, ...]) -> bytes:
    links = bytes.fromhex("".join([_LINK % (to[3:35], to[36:52]) for to in traceparents[:MOST_LINKS]]))
    if len(traceparents) > MOST_LINKS:
        links += Span(dropped_links_count=len(traceparents) - MOST_LINKS).SerializeToString()
    return links


def _attributes(field: Callable[[bytes], bytes], values: Mapping[str, Value]) -> bytes:
    """KeyValues, each in a field of the message that they are about."""
    return b"".join([field(_attribute(name, value)) for name, value in values.items()])


@lru_cache(maxsize=512, typed=True)  # most are one of a few: a count, an outcome, a host
def _attribute(name: str, value: Value) -> bytes:
    return _KEY(name.encode()) + _VALUE(_WRITERS[type(value)](value))


class _Writers(dict[type, Callable[[Any], bytes]]):
    """What writes an AnyValue of a type; subclasses (of `str`, say) as what they derive from."""

    def __missing__(self, kind: type) -> Callable[[Any], bytes]:
        for known in (bool, int, float, str):
            if issubclass(kind, known):
                return self[known]
        raise TypeError(f"{kind.__name__} is no type of an attribute's value")


# The fields that are written ------------------------------------------------------------------------------------------

_RESOURCE_SPANS: Final = lengthy(ExportTraceServiceRequest.RESOURCE_SPANS_FIELD_NUMBER)
_RESOURCE: Final = lengthy(ResourceSpans.RESOURCE_FIELD_NUMBER)
_SCOPE_SPANS: Final = lengthy(ResourceSpans.SCOPE_SPANS_FIELD_NUMBER)
_SPAN: Final = lengthy(ScopeSpans.SPANS_FIELD_NUMBER)
_EVENT: Final = lengthy(Span.EVENTS_FIELD_NUMBER)
_FAILED: Final[bytes] = Span(status=Status(code=Status.STATUS_CODE_ERROR)).SerializeToString()

_OF_RESOURCE: Final = lengthy(Resource.ATTRIBUTES_FIELD_NUMBER)
_OF_SPAN: Final = lengthy(Span.ATTRIBUTES_FIELD_NUMBER)
_OF_EVENT: Final = lengthy(Span.Event.ATTRIBUTES_FIELD_NUMBER)
_KEY: Final = lengthy(KeyValue.KEY_FIELD_NUMBER)
_VALUE: Final = lengthy(KeyValue.VALUE_FIELD_NUMBER)

_STRING: Final = lengthy(AnyValue.STRING_VALUE_FIELD_NUMBER)
_BOOL: Final = tag(AnyValue.BOOL_VALUE_FIELD_NUMBER, Wire.VARINT)
_INT: Final = tag(AnyValue.INT_VALUE_FIELD_NUMBER, Wire.VARINT)
_DOUBLE: Final = tag(AnyValue.DOUBLE_VALUE_FIELD_NUMBER, Wire.FIXED64)
_FLOAT: Final = Struct("<d")
_WRITERS: Final = _Writers(
    {
        str: lambda value: _STRING(value.encode()),
        bool: lambda value: _BOOL + varint(value),
        int: lambda value: _INT + varint(value),
        float: lambda value: _DOUBLE + _FLOAT.pack(value),
    }
)

_START: Final = tag(Span.START_TIME_UNIX_NANO_FIELD_NUMBER, Wire.FIXED64)
_END: Final = tag(Span.END_TIME_UNIX_NANO_FIELD_NUMBER, Wire.FIXED64)
_TIMES: Final = Struct("<sQsQ")


# A traceparent carries its ids in hexadecimal digits: what stands around them on the wire is kept in such digits, too.


def _form(message: Span, *ids: bytes) -> str:
    """An encoded message in hexadecimal digits, with `%s` in place of its ids."""
    form: str = message.SerializeToString().hex()
    for each in ids:
        form = form.replace(each.hex(), "%s")
    return form


def _forms() -> tuple[str, str, str]:
    """A root's ids and flags, those of a span with a parent, and a link."""
    trace, own, parent = bytes(range(16)), bytes(range(16, 24)), bytes(range(24, 32))
    here = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
    elsewhere = here | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    link = Span.Link(trace_id=trace, span_id=own, flags=elsewhere)
    return (
        _form(Span(trace_id=trace, span_id=own, flags=here), trace, own),
        _form(Span(trace_id=trace, span_id=own, parent_span_id=parent, flags=elsewhere), trace, own, parent),
        _form(Span(links=[link]), trace, own),
    )


_ROOT, _CHILD, _LINK = _forms()
