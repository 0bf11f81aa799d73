"""The spans of a task's messages: sent, claimed, processed, settled. See `tracing` for the tree they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import Token
from hashlib import blake2b
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from uuid import UUID

from handlers.providers.calls import Value
from handlers.runtime import tracing
from handlers.runtime.tracing import UNRECORDED, Span, Unrecorded, sampled
from handlers.store.claims import Claim
from handlers.stream.producer import NotPublished, Published
from handlers.tasks.decision import Decision
from handlers.tasks.states import Event

if TYPE_CHECKING:
    from opentelemetry.context import Context

BATCH_SIZE: Final = "messaging.batch.message_count"
_GROUP: Final = "messaging.consumer.group.name"
_FAILED: Final = frozenset({Event.RETRY, Event.DIED, Event.HELD, Event.HANDED_BACK})


class Message(Protocol):
    """A task whose record is sent."""

    @property
    def id(self) -> UUID: ...

    @property
    def traceparent(self) -> str | None: ...


class Destination(NamedTuple):
    """A topic, and the group that reads it."""

    topic: str
    group: str


def _about(operation: str, kind: str, topic: str) -> dict[str, Value]:
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": topic,
    }


class Sends:
    """The spans of records that are sent together, one for each recorded task."""

    __slots__ = ("_spans",)

    def __init__(self, messages: Sequence[tuple[str, Message]]) -> None:
        """Begin them; each message comes with the topic it goes to."""
        self._spans: dict[UUID, Span] = {}
        if not tracing.enabled():
            return
        for topic, message in messages:
            if sampled(message.traceparent):
                about = _about("send", "send", topic) | {"messaging.message.id": str(message.id)}
                self._spans[message.id] = Span(f"send {topic}", "PRODUCER", about, parent=message.traceparent)

    def traceparent(self, message: Message) -> str | None:
        """What the message's record carries."""
        span = self._spans.get(message.id)
        return message.traceparent if span is None else span.traceparent

    def end(self, messages: Iterable[Message], outcomes: Sequence[Published | NotPublished]) -> None:
        """End them with what Kafka said."""
        if not self._spans:
            return
        for message, outcome in zip(messages, outcomes, strict=True):
            span = self._spans.pop(message.id, None)
            if span is None:
                continue
            if isinstance(outcome, Published):
                span.note("messaging.destination.partition.id", str(outcome.partition))
                span.note("messaging.kafka.offset", outcome.offset)
            else:
                span.failed(outcome.error)
            span.end()

    def __enter__(self) -> Sends:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is left, with the error that broke the sending off."""
        for span in self._spans.values():
            span.failed("CutOff" if error is None else tracing.error_class(error))
            span.end()
        self._spans.clear()


def created(topic: str, task: UUID, traceparent: str) -> None:
    """The first span of a trace that begins with a task which no request of ours made."""
    if sampled(traceparent):
        about = _about("create", "create", topic) | {"messaging.message.id": str(task)}
        Span(f"create {topic}", "PRODUCER", about, own=traceparent).end()


def receiving(source: Destination, traceparents: Iterable[str | None]) -> Span | Unrecorded:
    """The claim of a batch of records."""
    return _batch("receive", "receive", "CLIENT", source, traceparents)


def settling(source: Destination, traceparents: Iterable[str | None]) -> Span | Unrecorded:
    """The writing of a batch of outcomes."""
    return _batch("settle", "settle", "CLIENT", source, traceparents)


def storing(source: Destination, traceparents: Iterable[str | None]) -> Span | Unrecorded:
    """The storing of a batch of dead letters."""
    return _batch("process", "process", "CONSUMER", source, traceparents)


def putting_aside(topic: str, traceparents: Iterable[str | None]) -> Span | Unrecorded:
    """The sending of a batch of records that are no tasks to the dead letters."""
    if not tracing.enabled():
        return UNRECORDED
    return tracing.batch(f"send {topic}", "PRODUCER", traceparents, _about("send", "send", topic), size=BATCH_SIZE)


def _batch(
    operation: str, kind: str, span: str, source: Destination, traceparents: Iterable[str | None]
) -> Span | Unrecorded:
    if not tracing.enabled():
        return UNRECORDED
    about = {**_about(operation, kind, source.topic), _GROUP: source.group, **tracing.POSTGRES}
    return tracing.batch(f"{operation} {source.topic}", span, traceparents, about, size=BATCH_SIZE)


def processing(source: Destination, claim: Claim, sent: str | None, received: str | None) -> Attempt | Unrecorded:
    """One attempt, from its claim to what is decided of it.

    Args:
        source: where its record stood.
        claim: the claim.
        sent: the traceparent of its record.
        received: that of the claim's span.
    """
    return Attempt(source, claim, sent, received) if sampled(claim.traceparent) else UNRECORDED


class Attempt:
    """The span of one attempt, for a `with` block. Spans of the handler's own instrumentation stand in it."""

    __slots__ = ("_outer", "_span")

    def __init__(self, source: Destination, claim: Claim, sent: str | None, received: str | None) -> None:
        about = _about("process", "process", source.topic) | {
            _GROUP: source.group,
            "messaging.message.id": str(claim.id),
            "taskflux.attempt": claim.attempt,
        }
        links = [received] if received else []
        if claim.replays:
            about["taskflux.replay"] = claim.replays
        if (before := _before(claim)) is not None:
            links.append(before)
        parent = sent if sent and tracing.trace_id(sent) == tracing.trace_id(claim.traceparent) else claim.traceparent
        own = _own(claim, claim.version)
        self._span = Span(f"process {source.topic}", "CONSUMER", about, parent=parent, links=links, own=own)
        self._outer: Token[Context] | None = None

    @property
    def traceparent(self) -> str:
        """Its own."""
        return self._span.traceparent

    def __enter__(self) -> Attempt:
        from opentelemetry import context, trace
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

        self._span.__enter__()
        _, trace_id, span_id, flags = self.traceparent.split("-")
        here = SpanContext(int(trace_id, 16), int(span_id, 16), False, TraceFlags(int(flags, 16)))
        self._outer = context.attach(trace.set_span_in_context(NonRecordingSpan(here)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from opentelemetry import context

        if self._outer is not None:
            context.detach(self._outer)
        self._span.__exit__(kind, error, trace)

    def raised(self, error: BaseException) -> None:
        """An error left the handler."""
        self._span.raised(error)

    def decided(self, decision: Decision) -> None:
        """What follows the attempt."""
        self._span.note("taskflux.outcome", decision.event.value)
        if decision.event in _FAILED and decision.error_class is not None:
            self._span.failed(decision.error_class)


def _own(claim: Claim, version: int) -> str:
    """The ids of the span of the attempt that was claimed at `version`: they follow from task and version."""
    digest = blake2b(claim.id.bytes + version.to_bytes(4, "big"), digest_size=8).hexdigest()
    return f"00-{tracing.trace_id(claim.traceparent)}-{digest}-03"


def _before(claim: Claim) -> str | None:
    """The attempt before this one: between two claims lies one publish, and a replay raises the version, too."""
    if claim.attempt == 1 and not claim.replays and not claim.handbacks:
        return None
    version = claim.version - (3 if claim.attempt == 1 and claim.replays and not claim.handbacks else 2)
    return _own(claim, version) if version > 0 else None
