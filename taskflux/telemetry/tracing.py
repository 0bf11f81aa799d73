"""Traces, after OpenTelemetry's conventions for messaging, HTTP and databases.

A task belongs to one trace from the request that created it to its end. Its context (`traceparent`, W3C) is on its row
and in every record about it, and its flag says whether spans are recorded: that is decided once, where the task comes
in (by the caller's flag, or else by the sampler); every process follows it. A mail that is tried twice::

    POST /tasks                         SERVER    ingest
    ├── insert tasks                    CLIENT    one for a batch of requests
    ├── send tasks.email                PRODUCER  ingest, or the relay
    │   ├── receive tasks.email         CLIENT    the claim, one for a batch of records
    │   └── process tasks.email         CONSUMER  attempt 1, failed
    │       ├── SMTP send               CLIENT
    │       └── settle tasks.email      CLIENT    one for a batch of outcomes
    └── send tasks.email                PRODUCER  the relay, when the task is due again
        ├── receive tasks.email         CLIENT
        └── process tasks.email         CONSUMER  attempt 2, linked to attempt 1
            └── …

* A batch's span links to every recorded message in it and belongs to the trace of the first; current requests whose
  tasks are in the batch link back to it.
* An attempt links to its claim and to the last attempt before it whose outcome was written: the row keeps its span.
* A dead task continues: `send tasks.dlq`, then `process tasks.dlq` in the dlq-sink. A replay stays in the task's trace,
  as further `send` and `process` spans, the first linked to the attempt that died. The replay's own request has a
  trace of its own, which links to the task's.
* All tasks of one batch request belong to its trace.
* Errors are recorded by class and place, never by their text, which may quote an address.

`on` says whether this process records spans at all. Check it before a span is opened: while it is false, OpenTelemetry
is not even imported, and no function here that opens a span may be called.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar, Token
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self
from urllib.parse import urlsplit
from uuid import UUID

from taskflux.tasks.errors import LONGEST_NAME, attribute, class_name, text_of

if TYPE_CHECKING:  # at run time `switch_on` imports them
    from opentelemetry import context as _context  # noqa: TC004
    from opentelemetry import propagate as _propagate  # noqa: TC004
    from opentelemetry import trace as _trace  # noqa: TC004

Value = str | int | float | bool
Attributes = Mapping[str, Value]

TRACE: Final[ContextVar[str | None]] = ContextVar("trace", default=None)
"""The traceparent (W3C) of the current request or attempt, or of a call within it."""

UNTRACED: Final = nullcontext()
"""In place of a span that is not recorded."""
POSTGRES: Final[Attributes] = {"db.system.name": "postgresql"}

on = False
_tracer: _trace.Tracer | None = None
_requests: Final[dict[str, Span]] = {}
"""Spans of current requests, by their traceparent: a batch that serves several of them is linked from each."""

_NOTHING: Final[Attributes] = {}
_SAMPLED_ENDS: Final = "13579bdf"


def switch_on(tracer: _trace.Tracer) -> None:
    """Record spans by `tracer` from now on."""
    global on, _tracer, _context, _propagate, _trace  # one process has one; the API is imported only if it is used
    from opentelemetry import context as _context
    from opentelemetry import propagate as _propagate
    from opentelemetry import trace as _trace

    on, _tracer = True, tracer


def switch_off() -> None:
    """Stop recording."""
    global on
    on = False
    _requests.clear()


# Contexts -------------------------------------------------------------------------------------------------------------


def sampled(traceparent: str | None) -> bool:
    """Whether spans of this trace are recorded here."""
    return on and bool(traceparent) and traceparent[-1] in _SAMPLED_ENDS  # type: ignore[index]


def exemplar(traceparent: str | None) -> dict[str, str] | None:
    """The exemplar of a metric for a trace, if that is recorded."""
    return {"trace_id": trace_id(traceparent)} if sampled(traceparent) else None


def trace_id(traceparent: str | None) -> str:
    """The trace id in a traceparent, or an empty text."""
    return traceparent[3:35] if traceparent else ""


def new_traceparent() -> str:
    """A new trace that is not recorded: every task has a trace id."""
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-02"


def outgoing() -> Mapping[str, str]:
    """The headers that carry the current trace to a service of ours."""
    traceparent = TRACE.get()
    if traceparent is None:
        return {}
    if not on:
        return {"traceparent": traceparent}
    headers: dict[str, str] = {}
    _propagate.inject(headers, _within(traceparent))
    return headers


def _place(traceparent: str) -> _trace.SpanContext:
    """The context of a span that another process, or an earlier attempt, has opened."""
    _, trace, span, flags = traceparent.split("-")
    return _trace.SpanContext(int(trace, 16), int(span, 16), True, _trace.TraceFlags(int(flags, 16)))


def _within(traceparent: str) -> _context.Context:
    return _trace.set_span_in_context(_trace.NonRecordingSpan(_place(traceparent)), _context.Context())


# Spans ----------------------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """The common part of all spans of one sort; `kind` is the name of one of OpenTelemetry's kinds of span."""

    name: str
    kind: str
    attributes: Attributes = _NOTHING
    size: str = "messaging.batch.message_count"
    """The attribute with the size of a batch."""


@cache
def messaging(name: str, topic: str, kind: str, group: str | None = None, *, stored: bool = False) -> Operation:
    """An operation on messages of a topic: create, send, receive, process or settle.

    `group` is that of the consumers; `stored`: PostgreSQL does it.
    """
    about: dict[str, Value] = {
        "messaging.system": "kafka",
        "messaging.operation.name": name,
        "messaging.operation.type": name,
        "messaging.destination.name": topic,
    }
    if group is not None:
        about["messaging.consumer.group.name"] = group
    return Operation(f"{name} {topic}", kind, {**about, **POSTGRES} if stored else about)


class Destination:
    """A topic and the group that reads it, with their operations."""

    __slots__ = ("group", "process", "receive", "settle", "store", "topic")

    def __init__(self, topic: str, group: str) -> None:
        self.topic = topic
        self.group = group
        self.receive = messaging("receive", topic, "CLIENT", group, stored=True)
        self.process = messaging("process", topic, "CONSUMER", group)
        self.settle = messaging("settle", topic, "CLIENT", group, stored=True)
        self.store = messaging("process", topic, "CONSUMER", group, stored=True)


class Span:
    """A span for a `with` block: spans opened in the block are its children, and it records an error that leaves it."""

    __slots__ = ("_around", "_outside", "_span", "traceparent")

    def __init__(self, span: _trace.Span) -> None:
        self._span = span
        place = span.get_span_context()
        self.traceparent = f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"

    def __enter__(self) -> Self:
        self._around: Token[str | None] = TRACE.set(self.traceparent)
        self._outside = _context.attach(_trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _context.detach(self._outside)
        TRACE.reset(self._around)
        if error is not None:
            self.raised(error)
            self.failed(error_class(error))
        self.end()

    def named(self, name: str) -> None:
        """Set its name, once that is known."""
        self._span.update_name(name)

    def note(self, name: str, value: Value) -> None:
        """Set an attribute."""
        self._span.set_attribute(name, value)

    def link(self, traceparent: str) -> None:
        """Link to another span."""
        self._span.add_link(_place(traceparent))

    def raised(self, error: BaseException) -> None:
        """Record an exception: its class and where it was raised."""
        trace = attribute(error, "__traceback__")
        frames = "".join(traceback.format_tb(trace if type(trace) is TracebackType else None))
        self._span.add_event("exception", {"exception.type": error_class(error), "exception.stacktrace": frames})

    def failed(self, error_type: str) -> None:
        """Mark it as failed; `error_type` is as precise as is known."""
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(_trace.StatusCode.ERROR)

    def end(self) -> None:
        """End it, if it is not used in a `with` block."""
        _requests.pop(self.traceparent, None)
        self._span.end()


def error_class(error: BaseException) -> str:
    """The name of an error: a task error's own, else its class."""
    name = attribute(error, "error_class")
    return (text_of(name, LONGEST_NAME) if issubclass(type(name), str) else "") or class_name(error)


def start(
    operation: Operation,
    attributes: Attributes = _NOTHING,
    *,
    parent: str | None,
    links: Sequence[str] = (),
    began: int | None = None,
) -> Span:
    """Begin a span; `began` is when it really began, in nanoseconds since 1970.

    `parent` and `links` are traceparents. Without a parent it is the first of a new trace, and the sampler decides
    whether it is recorded.
    """
    assert _tracer is not None
    span = _tracer.start_span(
        operation.name,
        _context.Context() if parent is None else _within(parent),
        _trace.SpanKind[operation.kind],
        {**operation.attributes, **attributes},
        [_trace.Link(_place(each)) for each in links],
        began,
    )
    return Span(span)


def message(operation: Operation, task: UUID, parent: str | None) -> Span:
    """Begin the span of an operation on one task's message."""
    return start(operation, {"messaging.message.id": str(task)}, parent=parent)


def batch(
    operation: Operation, traceparents: Iterable[str | None], *, began: int | None = None
) -> Span | nullcontext[None]:
    """One span, for a `with` block, of an operation on several messages; none if none of them is recorded."""
    messages = list(traceparents)
    links = list(dict.fromkeys(each for each in messages if each and each[-1] in _SAMPLED_ENDS))
    if not links:
        return UNTRACED
    about = {operation.size: len(messages)} if len(messages) > 1 else _NOTHING
    span = start(operation, about, parent=links[0], links=links, began=began)
    for each in links[1:] if _requests else ():
        if (other := _requests.get(each)) is not None:
            other.link(span.traceparent)
    return span


def call(name: str, attributes: Attributes) -> Span:
    """Begin the span of a call to a provider, within the current span (which may be a handler's own)."""
    assert _tracer is not None
    return Span(_tracer.start_span(name, None, _trace.SpanKind.CLIENT, attributes))


def http_attributes(method: str, base_url: str, path: str) -> Attributes:
    """The attributes of an HTTP call (OpenTelemetry's stable conventions); `path` holds no personal data."""
    base = urlsplit(base_url)
    return {
        "http.request.method": method,
        "server.address": base.hostname or "",
        "server.port": base.port or (443 if base.scheme == "https" else 80),
        "url.full": f"{base.scheme}://{base.netloc.rpartition('@')[2]}{base.path.rstrip('/')}/{path.lstrip('/')}",
    }


def request(headers: Iterable[tuple[bytes, bytes]], attributes: Attributes) -> Span:
    """Begin the span of an HTTP request, in its caller's trace or in a new one, which the sampler may not record.

    It has to be ended.
    """
    assert _tracer is not None
    carrier: dict[str, str] = {}
    for name, value in headers:
        carrier.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    caller = _propagate.extract(carrier, _context.Context())
    span = Span(_tracer.start_span("HTTP", caller, _trace.SpanKind.SERVER, attributes))
    if sampled(span.traceparent):
        _requests[span.traceparent] = span
    return span


def link_request(traceparent: str | None) -> None:
    """Link the current request to another trace, if both are recorded."""
    if traceparent and sampled(traceparent) and (span := _requests.get(TRACE.get() or "")) is not None:
        span.link(traceparent)
