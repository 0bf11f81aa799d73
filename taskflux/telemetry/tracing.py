"""Traces, after OpenTelemetry's conventions for messaging, HTTP and databases; without an endpoint this costs nothing.

A task belongs to one trace from the request that made it to its end. Its context (`traceparent`, W3C) stands on its
row and in every record about it, and its flag says whether spans are recorded: it is decided once, where the task
comes in (the caller's flag counts, else a draw by `sample_ratio`); every process follows it, and unsampled tasks pay
a comparison. A mail that is tried twice::

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

* A batch's span links to every recorded message in it and stands in the trace of the first; what is still under way
  there links back.
* An attempt links to its claim and to the last attempt before it whose outcome was written: the row keeps that one's
  span.
* A dead task goes on: `send tasks.dlq`, then `process tasks.dlq` in the dlq-sink. A replay stays in the task's trace,
  as further `send` and `process` spans, the first linked to the attempt that died. The replay's own request has a
  trace of its own, which links to the task's.
* All tasks of one batch request belong to its trace.
* Errors are recorded by class and place, never by their text: that may quote an address.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Iterable, Mapping
from contextvars import Token
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Final

from taskflux.telemetry import calls
from taskflux.telemetry.calls import TRACE, Value

if TYPE_CHECKING:
    from taskflux.telemetry.trace_export import Pipeline

Attributes = Mapping[str, Value]

RANDOM: Final = 0x02
SAMPLED: Final = 0x01
NOTHING: Final[Attributes] = {}
POSTGRES: Final[Attributes] = {"db.system.name": "postgresql"}

_SAMPLED_ENDS: Final = "13579bdf"
_pipeline: Pipeline | None = None
OPEN: Final[dict[str, Span]] = {}
"""Spans of requests under way, by their traceparent: what serves several of them is linked from each."""


def install(pipeline: Pipeline | None) -> None:
    """Record spans through `pipeline` from now on; None: record none."""
    global _pipeline  # one process has one
    _pipeline = pipeline
    calls.record = None if pipeline is None else _call
    OPEN.clear()


def enabled() -> bool:
    """Whether this process records spans at all."""
    return _pipeline is not None


def sampled(traceparent: str | None) -> bool:
    """Whether spans of this trace are recorded here."""
    return _pipeline is not None and bool(traceparent) and traceparent[-1] in _SAMPLED_ENDS  # type: ignore[index]


def exemplar(traceparent: str | None) -> dict[str, str] | None:
    """What a metric's exemplar says of a trace, where it is recorded."""
    return {"trace_id": trace_id(traceparent)} if sampled(traceparent) else None


def new_traceparent() -> str:
    """A trace of our own: every task has a trace id, recorded or not.

    Sampled only where this process records, by its ratio: who says so must record its first span (`created`).
    """
    flags = RANDOM
    if _pipeline is not None and random.random() < _pipeline.ratio:
        flags |= SAMPLED
    return f"00-{random.getrandbits(128) or 1:032x}-{_new_id()}-{flags:02x}"


def _new_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


def trace_id(traceparent: str | None) -> str:
    """The trace id in a traceparent, or nothing."""
    return traceparent[3:35] if traceparent else ""


class Operation:
    """What all spans of one sort have in common. Make it once: it is encoded once."""

    __slots__ = ("attributes", "encoded", "kind", "name")

    def __init__(self, name: str, kind: str, attributes: Attributes = NOTHING) -> None:
        """`kind` is the name of one of OpenTelemetry's kinds of span."""
        self.name = name
        self.kind = kind
        self.attributes = attributes
        self.encoded = b""


@lru_cache(maxsize=256)  # routes, and what providers are asked for: few, unless a handler names each of its calls
def named(name: str, kind: str) -> Operation:
    """An operation of which nothing else is known beforehand."""
    return Operation(name, kind)


class Span:
    """A span that is recorded. As a block it is what is under way there, and what leaves the block is its error."""

    __slots__ = (
        "_around",
        "attributes",
        "began",
        "events",
        "failure",
        "links",
        "operation",
        "parent",
        "traceparent",
    )

    def __init__(
        self,
        operation: Operation,
        attributes: Attributes = NOTHING,
        *,
        parent: str | None = None,
        links: tuple[str, ...] = (),
        own: str | None = None,
        began: int | None = None,
    ) -> None:
        """Begin it, or say when it began (nanoseconds since 1970).

        `attributes` are those beyond its operation's. A child stands in its parent's trace; a root has no `parent` but
        its `own` traceparent.
        """
        self.operation = operation
        self.attributes = dict(attributes)
        self.parent = parent
        self.links = links
        self.events: tuple[tuple[str, int, Attributes], ...] = ()
        self.failure: str | None = None
        self.began = began or time.time_ns()
        if own is None:
            assert parent is not None
            own = f"{parent[:36]}{_new_id()}{parent[52:]}"
        self.traceparent = own
        self._around: Token[str | None] | None = None

    def __enter__(self) -> Span:
        self._around = TRACE.set(self.traceparent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._around is not None:
            TRACE.reset(self._around)
        if error is not None:
            self.raised(error)
            self.failed(error_class(error))
        self.end()

    def note(self, name: str, value: Value) -> None:
        """Set an attribute."""
        self.attributes[name] = value

    def link(self, traceparent: str) -> None:
        """Link to another span."""
        self.links += (traceparent,)

    def raised(self, error: BaseException) -> None:
        """Record an exception: its class and where it was raised."""
        frames = "".join(traceback.format_tb(error.__traceback__))
        about = {"exception.type": error_class(error), "exception.stacktrace": frames}
        self.events += (("exception", time.time_ns(), about),)

    def failed(self, error_type: str, error_class: str = "") -> None:
        """What it stands for has failed; `error_type` is as close as it can be told, the class of it is for metrics."""
        self.failure = self.attributes["error.type"] = error_type

    def end(self) -> None:
        """End it."""
        if _pipeline is not None:
            _pipeline.record(self, time.time_ns())


def error_class(error: BaseException) -> str:
    """The name of an error: a task error's own, else its class."""
    return getattr(error, "error_class", None) or type(error).__name__


class Unrecorded:
    """In place of a span that is not recorded."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


UNRECORDED: Final = Unrecorded()


def batch(
    operation: Operation, traceparents: Iterable[str | None], *, size: str, began: int | None = None
) -> Span | Unrecorded:
    """One span, for a `with` block, of what is done for several at once; none where none of them is recorded.

    `size` is the attribute that tells how many there are, `began` when it began, where that is past.
    """
    if _pipeline is None:
        return UNRECORDED
    everybody = list(traceparents)
    recorded = [each for each in everybody if each and each[-1] in _SAMPLED_ENDS]
    if not recorded:
        return UNRECORDED
    links = tuple(dict.fromkeys(recorded))
    about = {size: len(everybody)} if len(everybody) > 1 else NOTHING
    span = Span(operation, about, parent=links[0], links=links, began=began)
    for each in links[1:] if OPEN else ():
        if (other := OPEN.get(each)) is not None:
            other.link(span.traceparent)
    return span


def attach(traceparent: str) -> None:
    """Let spans of a handler's own instrumentation stand in this one, for the rest of the asyncio task."""
    if _pipeline is not None:
        _pipeline.attach(traceparent)


def close() -> None:
    """Export what waits, within a bounded time, and record no more."""
    global _pipeline
    pipeline, _pipeline = _pipeline, None
    calls.record = None
    if pipeline is not None:
        pipeline.close()


def _call(name: str, attributes: Attributes) -> Span | None:
    around = TRACE.get()
    if not sampled(around):
        return None
    return Span(named(name, "CLIENT"), attributes, parent=around)
