"""The spans of HTTP requests under way: what serves several of them at once is linked from each."""

from __future__ import annotations

from types import TracebackType

from taskflux.telemetry import tracing
from taskflux.telemetry.calls import TRACE
from taskflux.telemetry.tracing import OPEN, Attributes, Span


class RequestSpan(Span):
    """The span of a request that is under way, for a `with` block."""

    __slots__ = ()

    def named(self, name: str) -> None:
        """Say what was asked for, once that is known."""
        self.operation = tracing.named(name, "SERVER")

    def __enter__(self) -> RequestSpan:
        OPEN[self.traceparent] = self
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        OPEN.pop(self.traceparent, None)
        super().__exit__(kind, error, trace)


def request(incoming: str | None, traceparent: str, attributes: Attributes) -> RequestSpan:
    """The span of a request whose trace is recorded.

    Args:
        incoming: the caller's traceparent.
        traceparent: that one, or a new one, whose first span this becomes.
        attributes: of the span.
    """
    own = traceparent if incoming is None else None
    return RequestSpan(tracing.named("HTTP", "SERVER"), attributes, parent=incoming, own=own)


def link_request(traceparent: str | None) -> None:
    """Link the request that is under way here to another trace, where both are recorded."""
    if tracing.sampled(traceparent) and (span := OPEN.get(TRACE.get() or "")) is not None:
        assert traceparent is not None
        span.link(traceparent)
