"""An OTLP receiver: a real HTTP server on loopback that decodes what is exported to it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1 import trace_pb2

Value = Any


@dataclass(frozen=True)
class Span:
    """A span as it was received."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    service: str
    began: int
    ended: int
    failed: bool
    attributes: Mapping[str, Value]
    resource: Mapping[str, Value]
    links: tuple[tuple[str, str], ...]
    events: tuple[tuple[str, Mapping[str, Value]], ...]

    @property
    def place(self) -> tuple[str, str]:
        """What a link to it says."""
        return self.trace, self.id


@dataclass
class Receiver:
    """Keeps what was exported. `answers` are HTTP statuses given in turn before 200."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    _spans: dict[tuple[str, str], Span] = field(default_factory=dict)
    repeated: list[Span] = field(default_factory=list)

    def take(self, path: str, headers: Mapping[str, str], body: bytes) -> int:
        """Keep one request; the status to answer."""
        self.requests.append((path, headers))
        if self.answers:
            return self.answers.pop(0)
        self.raw.append(body)
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            resource = _values(group.resource.attributes)
            for scope in group.scope_spans:
                for each in scope.spans:
                    span = _span(each, resource)
                    if span.place in self._spans:
                        self.repeated.append(span)
                    self._spans[span.place] = span
        return 200

    @property
    def spans(self) -> list[Span]:
        """All spans, in the order of their beginning."""
        return sorted(self._spans.copy().values(), key=lambda span: span.began)

    def trace(self, trace: str) -> list[Span]:
        """Those of one trace."""
        return [span for span in self.spans if span.trace == trace]

    def tree(self, trace: str) -> str:
        """A trace as text: a line for each span, below its parent, in the order of their beginning."""
        spans = self.trace(trace)
        known = {span.id for span in spans}
        roots = [span for span in spans if span.parent not in known]
        return "\n".join(line for root in roots for line in _lines(root, spans, 0))


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver, served at its `url`; with `tls`, over it."""
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = kept.take(self.path, dict(self.headers.items()), body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            with suppress(ConnectionError):  # the client did not wait
                self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    kept.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _lines(span: Span, spans: list[Span], depth: int) -> Iterator[str]:
    failure = f" !{span.attributes.get('error.type', '')}" if span.failed else ""
    yield f"{'  ' * depth}{span.kind} {span.name} @{span.service.removeprefix('taskflux-')}{failure}"
    for child in spans:
        if child.parent == span.id:
            yield from _lines(child, spans, depth + 1)


def _span(span: trace_pb2.Span, resource: Mapping[str, Value]) -> Span:
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        resource["service.name"],
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        _values(span.attributes),
        resource,
        tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        tuple((event.name, _values(event.attributes)) for event in span.events),
    )


def _values(pairs: Any) -> dict[str, Value]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
