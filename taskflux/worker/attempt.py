"""One claim in its process: what its handler is given, how far its attempt is, the room of its payload, its span."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass
from enum import Enum, auto
from types import CoroutineType
from typing import Any

from taskflux.store.claims import Claim
from taskflux.tasks.decision import unforeseen
from taskflux.tasks.errors import Ambiguous, Crash, Expired, TaskError, attribute, class_name, text_of, understood
from taskflux.tasks.model import Receipt, Task
from taskflux.telemetry import logs, tracing
from taskflux.worker.handler import Handler

log = logging.getLogger(__name__)


class Stage(Enum):
    READING = auto()  # what the handler is given is made
    WAITING = auto()  # for a slot or a turn: nothing has happened yet
    CALLED = auto()  # its handler runs
    SETTLING = auto()  # what follows is known, and must be written


@dataclass(slots=True, eq=False)
class Running:
    """A claim in this process, made in `term` of the lease; `probe`: it is let through an open circuit.

    `turn` is set once it may begin; None: it need not wait for that.
    """

    claim: Claim
    term: int
    probe: bool
    since: float
    context: Context
    turn: asyncio.Event | None = None
    task: asyncio.Task[None] | None = None
    stage: Stage = Stage.READING
    slot: bool = False  # it has one
    in_thread: bool = False  # its handler is a plain function, and has not returned
    room: int = 0  # bytes that its payload takes, where that is not light
    seconds: float | None = None  # that its handler took
    span: tracing.Span | None = None  # where its trace is recorded
    released: str = ""  # why this worker has cancelled it before it began
    cut: str = ""  # why this worker has cancelled it
    cuts: int = 0
    again: asyncio.TimerHandle | None = None  # when it is cut off, if it has not ended by then
    settled: bool = False  # its outcome is in the hands of `Outcomes`

    @property
    def called(self) -> bool:
        """Whether its handler was called: from then on, its side effect may have happened."""
        return self.stage is Stage.CALLED or self.seconds is not None


def task_of(handler: Handler[Any], claim: Claim, payload: str) -> Task[Any]:
    """The claimed task as its handler is given it.

    Raises:
        Permanent: it must not be run any more, or is not what the handler declared.
        BaseException: whatever a validator of the payload raises.
    """
    if claim.expired:
        raise Expired("its expiresAt had passed when a worker took it")
    return Task(
        claim.id,
        handler.type,
        handler.parse(payload),
        claim.attempt,
        claim.max_attempts,
        claim.replays,
        claim.created_at,
        claim.tenant,
        claim.key,
        json.loads(claim.metadata) if claim.metadata else {},
        json.loads(claim.progress) if claim.progress else {},
    )


def result_of(receipt: object, task_type: str) -> Mapping[str, Any] | None:
    """The result in what a handler returned.

    Raises:
        TypeError: it is a coroutine: nothing has awaited it, so the work was not done.
    """
    if type(receipt) is Receipt:
        return receipt.result
    if receipt is None:
        return None
    if issubclass(type(receipt), Receipt):
        return attribute(receipt, "result")  # type: ignore[return-value]
    if issubclass(type(receipt), CoroutineType):
        receipt.close()  # type: ignore[attr-defined]
        raise TypeError("the handler returned a coroutine: declare it with `async def`, and await what it calls")
    # It was done all the same: tried again, it would be done twice.
    log.error("a handler returned something other than a Receipt", extra={"type": task_type})
    return None


def error_of(handler: Handler[Any], running: Running, raised: BaseException) -> TaskError | None:
    """What the exception that left an attempt stands for; None where it was cancelled before the call.

    Only what this worker has cut off itself is said to be cut off: a handler can be cancelled by its own code.
    """
    error = understood(raised)
    if error is None and running.cut:
        error = Ambiguous(running.cut)
    if error is None and running.stage is Stage.WAITING and issubclass(type(raised), asyncio.CancelledError):
        return None
    if error is None:
        said = text_of(raised)
        error = Crash(class_name(raised) + (f": {said}" if said else ""))
    if type(error) is Crash:
        # Where it happened, without what it says: that may name a person, and is kept on the row alone.
        log.error("a handler crashed\n%s", logs.frames(raised), extra={"error_class": class_name(raised)})
        error = unforeseen(handler.policy, error.reason, called=running.called)
    if running.span is not None:
        running.span.raised(raised)
    return error


class Payloads:
    """Room for what payloads take: `most` bytes, or a single one of any size."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._turn = asyncio.Lock()
        self._given = asyncio.Event()

    async def take(self, size: int) -> None:
        """Return once there is room for `size` bytes, which are held until `give`."""
        async with self._turn:  # in their order: smaller ones would pass a large one for ever
            while self._held and self._held + size > self._most:
                self._given.clear()
                await self._given.wait()
            self._held += size

    def give(self, size: int) -> None:
        """Hold `size` bytes less."""
        self._held -= size
        self._given.set()


def attempt_span(source: tracing.Destination, claim: Claim, sent: str | None, received: str | None) -> tracing.Span:
    """The span of one attempt, linked to its claim and to the attempt before it.

    Args:
        source: where its record stood.
        claim: the claim.
        sent: the traceparent of its record, which the span stands below; of another trace, it is below the task's own.
        received: that of the claim's span.
    """
    own = claim.traceparent or ""
    about: dict[str, tracing.Value] = {"messaging.message.id": str(claim.id), "taskflux.attempt": claim.attempt}
    if claim.replays:
        about["taskflux.replay"] = claim.replays
    parent = sent if sent and tracing.trace_id(sent) == tracing.trace_id(own) else own
    links = [each for each in (received, claim.attempt_span) if each is not None]
    return tracing.start(source.process, about, parent=parent, links=links)
