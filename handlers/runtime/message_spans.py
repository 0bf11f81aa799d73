"""The spans of a task's messages: sent, claimed, processed, settled. See `tracing` for the tree they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import Token
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from uuid import UUID

from handlers.providers.calls import Value
from handlers.runtime import tracing
from handlers.runtime.tracing import UNRECORDED, Operation, Span, Unrecorded, sampled
from handlers.store.claims import Claim
from handlers.stream.producer import NotPublished, Published
from handlers.tasks.decision import Decision
from handlers.tasks.states import Event

if TYPE_CHECKING:
    from opentelemetry.context import Context

BATCH_SIZE: Final = "messaging.batch.message_count"
_GROUP: Final = "messaging.consumer.group.name"
_MESSAGE: Final = "messaging.message.id"
_SPREAD: Final = 0x9E37_79B9_7F4A_7C15  # 2^64 by the golden ratio: near versions differ in all digits
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


@cache
def _operation(
    operation: str, kind: str, span: str, topic: str, group: str | None = None, *, stored: bool = False
) -> Operation:
    """What is done with messages of a topic; `kind` and `span` are OpenTelemetry's kinds of operation and of span.

    `stored`: it is done in PostgreSQL.
    """
    about: dict[str, Value] = {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": topic,
    }
    if group is not None:
        about[_GROUP] = group
    if stored:
        about |= tracing.POSTGRES
    return Operation(f"{operation} {topic}", span, about)


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
                send = _operation("send", "send", "PRODUCER", topic)
                self._spans[message.id] = Span(send, {_MESSAGE: str(message.id)}, parent=message.traceparent)

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
        create = _operation("create", "create", "PRODUCER", topic)
        Span(create, {_MESSAGE: str(task)}, own=traceparent).end()


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
    return tracing.batch(_operation("send", "send", "PRODUCER", topic), traceparents, size=BATCH_SIZE)


def _batch(
    operation: str, kind: str, span: str, source: Destination, traceparents: Iterable[str | None]
) -> Span | Unrecorded:
    what = _operation(operation, kind, span, source.topic, source.group, stored=True)
    return tracing.batch(what, traceparents, size=BATCH_SIZE)


def processing(source: Destination, claim: Claim, sent: str | None, received: str | None) -> Attempt | Unrecorded:
    """One attempt, from its claim to what is decided of it.

    Args:
        source: where its record stood.
        claim: the claim.
        sent: the traceparent of its record.
        received: that of the claim's span.
    """
    return Attempt(source, claim, sent, received) if sampled(claim.traceparent) else UNRECORDED


class Attempt(Span):
    """The span of one attempt, for a `with` block. Spans of the handler's own instrumentation stand in it."""

    __slots__ = ("_outer",)

    def __init__(self, source: Destination, claim: Claim, sent: str | None, received: str | None) -> None:
        process = _operation("process", "process", "CONSUMER", source.topic, source.group)
        about: dict[str, Value] = {_MESSAGE: str(claim.id), "taskflux.attempt": claim.attempt}
        if claim.replays:
            about["taskflux.replay"] = claim.replays
        links = tuple(each for each in (received, _before(claim)) if each)
        parent = sent if sent and tracing.trace_id(sent) == tracing.trace_id(claim.traceparent) else claim.traceparent
        super().__init__(process, about, parent=parent, links=links, own=_own(claim, claim.version))
        self._outer: Token[Context] | None = None

    def __enter__(self) -> Attempt:
        super().__enter__()
        self._outer = tracing.attach(self.traceparent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tracing.detach(self._outer)
        super().__exit__(kind, error, trace)

    def decided(self, decision: Decision) -> None:
        """What follows the attempt."""
        self.note("taskflux.outcome", decision.event.value)
        if decision.event in _FAILED and decision.error_class is not None:
            self.failed(decision.error_class)


def _own(claim: Claim, version: int) -> str:
    """The ids of the span of the attempt that was claimed at `version`: they follow from task and version.

    As random as the task's id is, and another for each of its versions: the factor is odd.
    """
    span_id = (claim.id.int ^ version * _SPREAD) & 0xFFFF_FFFF_FFFF_FFFF
    return f"00-{tracing.trace_id(claim.traceparent)}-{span_id or 1:016x}-03"


def _before(claim: Claim) -> str | None:
    """The attempt before this one: between two claims lies one publish, and a replay raises the version, too."""
    if claim.attempt == 1 and not claim.replays and not claim.handbacks:
        return None
    version = claim.version - (3 if claim.attempt == 1 and claim.replays and not claim.handbacks else 2)
    return _own(claim, version) if version > 0 else None
