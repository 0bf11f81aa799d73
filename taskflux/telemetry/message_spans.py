"""The spans of a task's messages: sent, claimed, processed, settled. See `tracing` for the tree they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from types import TracebackType
from typing import Final, Protocol
from uuid import UUID

from taskflux.store.claims import Claim
from taskflux.stream.producer import NotPublished, Published
from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event
from taskflux.telemetry import tracing
from taskflux.telemetry.calls import TRACE, Value
from taskflux.telemetry.tracing import UNRECORDED, Operation, Span, Unrecorded, sampled

BATCH_SIZE: Final = "messaging.batch.message_count"
_GROUP: Final = "messaging.consumer.group.name"
_MESSAGE: Final = "messaging.message.id"
_FAILED: Final = frozenset({Event.RETRY, Event.DIED, Event.HELD, Event.HANDED_BACK})


class Message(Protocol):
    """A task whose record is sent."""

    @property
    def id(self) -> UUID: ...

    @property
    def traceparent(self) -> str | None: ...


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


class Destination:
    """A topic and the group that reads it, with what is done there."""

    __slots__ = ("group", "process", "receive", "settle", "store", "topic")

    def __init__(self, topic: str, group: str) -> None:
        self.topic = topic
        self.group = group
        self.receive = _operation("receive", "receive", "CLIENT", topic, group, stored=True)
        self.process = _operation("process", "process", "CONSUMER", topic, group)
        self.settle = _operation("settle", "settle", "CLIENT", topic, group, stored=True)
        self.store = _operation("process", "process", "CONSUMER", topic, group, stored=True)


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
    return tracing.batch(source.receive, traceparents, size=BATCH_SIZE)


def settling(source: Destination, traceparents: Iterable[str | None]) -> Span | Unrecorded:
    """The writing of a batch of outcomes."""
    return tracing.batch(source.settle, traceparents, size=BATCH_SIZE)


def storing(source: Destination, traceparents: Iterable[str | None]) -> Span | Unrecorded:
    """The storing of a batch of dead letters."""
    return tracing.batch(source.store, traceparents, size=BATCH_SIZE)


def putting_aside(topic: str, traceparents: Iterable[str | None]) -> Span | Unrecorded:
    """The sending of a batch of records that are no tasks to the dead letters."""
    return tracing.batch(_operation("send", "send", "PRODUCER", topic), traceparents, size=BATCH_SIZE)


def processing(source: Destination, claim: Claim, sent: str | None, received: str | None) -> Attempt | Unrecorded:
    """One attempt, from its claim to what is decided of it.

    Args:
        source: where its record stood.
        claim: the claim.
        sent: the traceparent of its record.
        received: that of the claim's span.
    """
    traceparent = claim.traceparent
    if traceparent is None or not sampled(traceparent):
        return UNRECORDED
    parent = sent if sent and sent[3:35] == traceparent[3:35] else traceparent
    return Attempt(source, claim, parent, received)


class Attempt(Span):
    """The span of one attempt, for a `with` block in an asyncio task of its own, where it stays until that ends.

    Spans of the handler's own instrumentation stand in it, too.
    """

    __slots__ = ()

    def __init__(self, source: Destination, claim: Claim, parent: str, received: str | None) -> None:
        about: dict[str, Value] = {_MESSAGE: str(claim.id), "taskflux.attempt": claim.attempt}
        if claim.replays:
            about["taskflux.replay"] = claim.replays
        links = tuple(each for each in (received, claim.attempt_span) if each is not None)
        super().__init__(source.process, about, parent=parent, links=links)

    def __enter__(self) -> Attempt:
        TRACE.set(self.traceparent)
        tracing.attach(self.traceparent)
        return self

    def decided(self, decision: Decision) -> None:
        """What follows the attempt."""
        self.note("taskflux.outcome", decision.event)
        if decision.event in _FAILED and decision.error_class is not None:
            self.failed(decision.error_class)
