"""One claim in its process: what its handler is given, how far its attempt is, its slot and deadline, its span."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from itertools import takewhile
from sys import getrefcount
from time import monotonic
from types import CoroutineType, coroutine
from typing import Any, Final
from uuid import UUID

from taskflux.store.claims import Claim
from taskflux.store.errors import until_available
from taskflux.tasks.bounds import FEW, LARGE, VALUE_BYTES
from taskflux.tasks.decision import unforeseen
from taskflux.tasks.errors import Ambiguous, Crash, Expired, TaskError, attribute, class_name, text_of, understood
from taskflux.tasks.model import Receipt, Task
from taskflux.telemetry import logs, tracing
from taskflux.worker.handler import Handler

log = logging.getLogger(__name__)

EARLY: Final = 0.001
"""Seconds by which a timer may come early: the event loop counts in milliseconds."""
TURN: Final = 0.005
"""Seconds after which attempts that end without waiting let the event loop do what else there is to do."""
AHEAD: Final = 0.05
"""Seconds of work that may be in line: while it is done, the next claims are made."""
MOST_AHEAD: Final = 8
"""How many times as many may be in line as may run: if the work becomes slow, others have to wait for it here."""
PACE: Final = 0.1
"""Seconds over which it is measured how many attempts end."""


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
    sent: str | None = None  # the traceparent of its record
    received: str | None = None  # that of the claim's span
    task: asyncio.Task[None] | None = None  # that runs it; None while it is in line, and until it waits
    called_up: asyncio.Future[None] | None = None  # done once it has a slot, if it waits for that as a task
    stage: Stage = Stage.READING
    slot: bool = False  # it has one
    in_thread: bool = False  # its handler is a plain function, and has not returned
    room: int = 0  # bytes that its payload takes, where that is not light
    seconds: float | None = None  # that its handler took
    span: tracing.Span | None = None  # where its trace is recorded
    released: str = ""  # why this worker has cancelled it before it began
    cut: str = ""  # why this worker has cancelled it
    cuts: int = 0
    again: asyncio.TimerHandle | None = None  # when it is cut off again, if it has not ended by then
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
        datetime.fromtimestamp(claim.created, UTC),
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


class Slots:
    """Lets `most` attempts `run` at once; the others are in line, in their order.

    Attempts begin in one asyncio task, one after the other, until one waits for anything: the task is its own from then
    on, and the next ones begin in another. So a handler that does not wait costs no task. It has the task to itself all
    the same: if it has cancelled that, or something keeps a reference to it, no other attempt begins there. Each
    attempt has its own context, in which every step of it runs. `clock` returns monotonic seconds.
    """

    def __init__(
        self,
        most: int,
        run: Callable[[Running], Coroutine[Any, Any, None]],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._free = most
        self._run = run
        self._line: deque[Running] = deque()
        self._hired: set[asyncio.Task[None]] = set()  # those that have not begun with the line yet
        self._beginning = False  # one of them does, at this moment
        self._waited = False  # the last attempt that began did: the next ones need a task each
        self._clock = clock
        self._ended_since = clock()
        self._ended_now = 0  # attempts, since then
        self._pace = 0.0  # attempts that ended in a second before

    def enter(self, running: Running) -> None:
        """Let an attempt begin once it has a slot."""
        running.stage = Stage.WAITING
        self._line.append(running)
        self._serve()

    def leave(self, running: Running) -> None:
        """Take one out of the line that has not begun."""
        self._line.remove(running)

    async def take(self, running: Running) -> None:
        """Return once an attempt that has begun in a task of its own has a slot."""
        running.called_up = asyncio.get_running_loop().create_future()
        self._line.append(running)
        self._serve()
        try:
            await running.called_up
        finally:
            if not running.slot:  # it was cancelled
                with suppress(ValueError):
                    self._line.remove(running)

    def in_line(self, slots: int) -> int:
        """How many may be in line for so many slots: as many, or what ends within `AHEAD`."""
        now = self._clock()
        if (passed := now - self._ended_since) >= PACE:
            self._pace, self._ended_since, self._ended_now = self._ended_now / passed, now, 0
        return max(slots, min(int(self._pace * AHEAD), MOST_AHEAD * slots))

    def give(self, running: Running) -> None:
        """Let the next one have the slot of `running`."""
        running.slot = False
        self._free += 1
        self._ended_now += 1
        self._serve()

    def _serve(self) -> None:
        while self._free and self._line and (called_up := self._line[0].called_up) is not None:
            running = self._line.popleft()
            if not called_up.done():  # its attempt was cancelled, and has not noticed it yet
                self._hold(running)
                called_up.set_result(None)
        if self._beginning or not (self._free and self._line):
            return  # the one that begins goes on with the line
        wanted = min(self._free, len(self._line), len(self._line) if self._waited else 1)
        while len(self._hired) < wanted:
            task = asyncio.create_task(self._run_line(), context=Context())
            self._hired.add(task)
            task.add_done_callback(self._ended)

    def _hold(self, running: Running) -> None:
        self._free -= 1
        running.slot = True

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._hired.discard(task)  # it was cancelled before its first step: another one is hired
        self._serve()

    async def _run_line(self) -> None:
        """Begin with what is in line, until an attempt waits, and go on with that one."""
        task, until = asyncio.current_task(), monotonic() + TURN
        assert task is not None
        self._hired.discard(task)
        self._beginning, untouched = True, getrefcount(task)
        waiting = None
        try:
            while self._free and self._line and self._line[0].called_up is None:
                running = self._line.popleft()
                self._hold(running)
                running.stage = Stage.READING
                attempt = self._run(running)
                try:
                    waiting = attempt, running.context, running.context.run(attempt.send, None)
                except StopIteration:
                    self._waited = False
                    if task.cancelling() or getrefcount(task) != untouched or monotonic() >= until:
                        break
                else:
                    running.task, self._waited = task, True
                    break
        finally:
            self._beginning = False
            self._serve()
        if waiting is not None:
            await _rest(*waiting)


@coroutine
def _rest(attempt: Coroutine[Any, Any, None], context: Context, waits_for: Any) -> Generator[Any, None, None]:
    """The steps of a coroutine after its first one, which `waits_for` something."""
    try:
        while True:
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's
                waits_for = context.run(attempt.throw, error)
            else:
                waits_for = context.run(attempt.send, None)
    except StopIteration:
        return


class Deadlines:
    """Tells by `late` which handlers have not ended `limit` seconds after their call.

    One timer is enough for all of them, since they come in the order of their calls.
    """

    def __init__(self, limit: float, late: Callable[[Running], None]) -> None:
        self._limit = limit
        self._late = late
        self._until: dict[Running, float] = {}  # monotonic
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, running: Running) -> None:
        """The handler of this attempt is called."""
        self._until[running] = monotonic() + self._limit
        if self._timer is None:
            self._set_timer()

    def end(self, running: Running) -> None:
        """It has ended, or was cut off."""
        self._until.pop(running, None)

    def _set_timer(self) -> None:
        first = next(iter(self._until.values()))
        self._timer = asyncio.get_running_loop().call_later(max(0.0, first - monotonic()), self._look)

    def _look(self) -> None:
        now = monotonic() + EARLY
        for running in list(takewhile(lambda each: self._until[each] <= now, self._until)):
            del self._until[running]
            self._late(running)
        self._timer = None
        if self._until:
            self._set_timer()


class Payloads:
    """Payloads that are not light, and room for what they take: `most` bytes, or a single one of any size."""

    def __init__(self, most: int, handler: Handler[Any], read: Callable[[UUID], Awaitable[str]]) -> None:
        self._most = most
        self._handler = handler
        self._read = read
        self._held = 0
        self._turn = asyncio.Lock()
        self._given = asyncio.Event()

    async def of(self, running: Running) -> str:
        """The payload of an attempt, once there is room for what it takes, which the attempt then holds until `give`.

        A large one did not come with its claim, and is read here. While it waits, nothing of it is kept.

        Raises:
            InvalidPayload: it is larger than its type takes, and is not read at all; or it is out of bounds.
        """
        claim, payload = running.claim, running.claim.payload
        self._handler.check_size(claim.size)
        running.stage = Stage.WAITING
        needed = 2 * claim.size + FEW * VALUE_BYTES
        while running.room < needed:
            payload = None
            self.give(running)
            await self._take(running, needed)
            payload = claim.payload
            if payload is None:
                payload = await until_available(lambda: self._read(claim.id))
            values = self._handler.values
            counted = values(payload) if len(payload) < LARGE else await asyncio.to_thread(values, payload)
            needed = 2 * claim.size + max(FEW, counted) * VALUE_BYTES
        running.stage = Stage.READING
        return payload or ""

    def give(self, running: Running) -> None:
        """Let others have the room of this attempt."""
        if running.room:
            self._held -= running.room
            running.room = 0
            self._given.set()

    async def _take(self, running: Running, size: int) -> None:
        """Return once there is room for `size` bytes."""
        async with self._turn:  # in their order: smaller ones would pass a large one for ever
            while self._held and self._held + size > self._most:
                self._given.clear()
                await self._given.wait()
            self._held += size
            running.room = size


def cancel(running: Running) -> None:
    """Cancel the asyncio task of an attempt."""
    try:
        if running.task is not None:
            running.task.cancel()
    except BaseException as error:  # noqa: BLE001 - what it waits for may be foreign code: one of its own futures
        log.error("an attempt could not be cancelled\n%s", logs.frames(error), extra={"error_class": class_name(error)})


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
