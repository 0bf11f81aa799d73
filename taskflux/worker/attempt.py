"""One claim in its process: how far its attempt is, the room that its payload takes, and its span."""

from __future__ import annotations

import asyncio
from contextvars import Context
from dataclasses import dataclass
from enum import Enum, auto

from taskflux.store.claims import Claim
from taskflux.telemetry import tracing


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
