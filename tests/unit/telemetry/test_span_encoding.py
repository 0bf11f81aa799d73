"""What is written by hand is what protobuf itself reads and would write."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from taskflux.telemetry import tracing
from taskflux.telemetry.calls import Value
from taskflux.telemetry.span_encoding import Encoder

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=3000)
values = st.one_of(texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
attributes = st.dictionaries(texts, values, max_size=5)
traceparents = st.binary(min_size=24, max_size=24).map(lambda ids: f"00-{ids[:16].hex()}-{ids[16:].hex()}-01")
times = st.integers(0, 2**64 - 1)
events = st.lists(st.tuples(texts, times, attributes), max_size=2).map(tuple)

RESOURCE: dict[str, Value] = {"service.name": "taskflux-test", "pid": 7}
LOCAL, REMOTE = 0x100, 0x300
FIELD = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}

Attributes = dict[str, Value]


def key_values(values: Attributes) -> list[KeyValue]:
    fields: list[dict[str, Any]] = [{FIELD[type(value)]: value} for value in values.values()]
    return [KeyValue(key=key, value=AnyValue(**field)) for key, field in zip(values, fields, strict=True)]


def ids(traceparent: str) -> dict[str, Any]:
    _, trace, span, _ = traceparent.split("-")
    return {"trace_id": bytes.fromhex(trace), "span_id": bytes.fromhex(span)}


@settings(database=None, deadline=None)
@given(
    common=attributes,
    about=attributes,
    own=traceparents,
    parent=st.none() | traceparents,
    links=st.lists(traceparents, max_size=4).map(tuple),
    events=events,
    failed=st.booleans(),
    began=times.filter(bool),
    ended=times,
)
def test_a_span_is_what_protobuf_makes_of_it(
    common: Attributes,
    about: Attributes,
    own: str,
    parent: str | None,
    links: tuple[str, ...],
    events: tuple[tuple[str, int, Attributes], ...],
    failed: bool,
    began: int,
    ended: int,
) -> None:
    operation = tracing.Operation("look", "CLIENT", common)
    own = f"00-{(parent or own)[3:35]}-{own[36:]}"
    span = tracing.Span(operation, about, parent=parent, links=links, own=own, began=began)
    span.events = events
    told = dict(about)
    if failed:
        span.failed("Gone")
        told["error.type"] = "Gone"
    expected = Span(
        **ids(own),
        parent_span_id=ids(parent)["span_id"] if parent else b"",
        flags=REMOTE if parent else LOCAL,
        name="look",
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=began,
        end_time_unix_nano=ended,
        attributes=key_values(common) + key_values(told),
        links=[Span.Link(**ids(link), flags=REMOTE) for link in links],
        events=[Span.Event(name=name, time_unix_nano=at, attributes=key_values(what)) for name, at, what in events],
        status=Status(code=Status.STATUS_CODE_ERROR) if failed else None,
    )
    encoder = Encoder(RESOURCE, "1.2")
    request = ExportTraceServiceRequest.FromString(encoder.request([encoder.ours(span, ended)]))
    (of_resource,) = request.resource_spans
    (of_scope,) = of_resource.scope_spans
    assert list(of_resource.resource.attributes) == key_values(RESOURCE)
    assert (of_scope.scope.name, of_scope.scope.version) == ("taskflux", "1.2")
    assert list(of_scope.spans) == [expected]
