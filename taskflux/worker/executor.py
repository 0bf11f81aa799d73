"""The way of a claim through its worker: what its handler is given, what follows."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, Final
from uuid import UUID

from taskflux.store.claims import SETTLE_BATCH, Claim, Settlement
from taskflux.tasks.bounds import LARGE, MOST_BYTES
from taskflux.tasks.decision import Attempt, Decision, decide, release
from taskflux.tasks.errors import Ambiguous, InvalidPayload, Permanent, ProviderError, TaskError
from taskflux.tasks.model import Task
from taskflux.tasks.states import Event, State
from taskflux.telemetry import logs, metrics, tracing
from taskflux.telemetry.tracing import TRACE
from taskflux.worker.attempt import (
    Deadlines,
    Payloads,
    Running,
    Slots,
    Stage,
    attempt_span,
    cancel,
    error_of,
    result_of,
    task_of,
)
from taskflux.worker.circuits import Gate
from taskflux.worker.handler import Handler
from taskflux.worker.lease import Lease
from taskflux.worker.outcomes import Outcomes
from taskflux.worker.threads import Outcome, Threads

log = logging.getLogger(__name__)

LEASE_LOST: Final = "the worker could not renew its lease"
WORKER_ENDED: Final = "the worker ended before it began"
CUT_BY_DRAIN: Final = "it was cut off when its worker ended"
ALL_STUCK: Final = "all threads of its worker were stuck"
NEVER_BEGUN: Final = "it was cancelled before it began"
ATTEMPT_LOST: Final = "its worker has lost track of the attempt"
LAST_CUT: Final = 3.0
"""Seconds that the handlers which a process cuts off as it ends have to end."""
LAST_SETTLES: Final = 5.0
"""Seconds that a process which ends waits for its outcomes to be written, those of `LAST_CUT` among them."""
PATIENCE: Final = 10.0
"""Seconds that a handler which was cut off has to end, before it is cut off again, and before it is abandoned."""
CUTS: Final = 2
"""How often a handler is cut off before it is abandoned."""

_DONE: Final = Decision(Event.SUCCEEDED, State.SUCCEEDED)
_FAILED: Final = frozenset({Event.RETRY, Event.DIED, Event.HELD, Event.RELEASED})

PAYLOAD_BYTES: Final = 2 * MOST_BYTES
"""Bytes that the payloads of all attempts in a worker take together: twice its own, and `VALUE_BYTES` for each of its
values. The worker's memory limit follows from it."""

LIGHT: Final = 4096
"""Bytes of a payload that is not counted there."""


class Executor:
    """Runs claims of one handler, `concurrency` at once.

    Each goes the same way: `task_of` makes of it what the handler is given, `_unfit` and the gate say whether that may
    be called, `_call` calls it, `error_of` says what an exception stands for, `_decision` what follows, and the outcome
    is written. Whatever a handler does or raises ends in `_attempt`, so that every attempt is settled.

    A plain function runs in a thread. When its attempt is cut off, the attempt is settled, and the thread is stuck: it
    keeps its slot until the function returns, and what it says then counts for nothing.

    `patience` is in seconds (`PATIENCE`), `payload_bytes` in bytes (`PAYLOAD_BYTES`).
    """

    def __init__(
        self,
        handler: Handler[Any],
        gate: Gate,
        lease: Lease,
        outcomes: Outcomes,
        concurrency: int,
        *,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = monotonic,
        patience: float = PATIENCE,
        payload_bytes: int = PAYLOAD_BYTES,
    ) -> None:
        self.handler = handler
        self.lease = lease
        self.source = lease.claims.source
        self._gate = gate
        self._outcomes = outcomes
        self._jitter = jitter
        self._clock = clock
        self._patience = patience
        self._concurrency = concurrency
        self._slots = Slots(concurrency, self._run, clock)
        self._payloads = Payloads(payload_bytes, handler, lease.claims.payload)
        self._blocking = handler.blocking
        self._threads = Threads(handler.name)
        self._stuck: set[Running] = set()  # their attempts are over, and their threads go on
        self._all_stuck_since: float | None = None
        # By task and version: a task whose lease was lost may come again meanwhile.
        self._running: dict[tuple[UUID, int], Running] = {}
        self._turns: Counter[asyncio.Event] = Counter()  # of those that were given one: how many are not settled
        self._deadlines = Deadlines(handler.policy.timeout, self._late)
        self._lost: dict[tuple[UUID, int], Running] = {}  # those that a fault of ours has ended without an outcome
        self._room = asyncio.Event()
        self._empty = asyncio.Event()
        self._draining = False
        metrics.CONCURRENCY.labels(handler.type).set(concurrency)
        metrics.IN_FLIGHT.labels(handler.type).follow(self, lambda executor: executor.in_flight)
        metrics.STUCK_THREADS.labels(handler.type).follow(self, lambda executor: len(executor._stuck))
        metrics.ERRORS.zeros(handler.type, metrics.TASK_ERRORS)

    @property
    def in_flight(self) -> int:
        """Claims that are not settled."""
        return len(self._running)

    def holds(self, task: UUID, version: int) -> bool:
        """Whether the claim of `task` at `version` was begun here and is not settled yet."""
        return (task, version) in self._running or (task, version) in self._lost

    def runs(self, task: UUID, version: int) -> bool:
        """Whether it will be settled by itself: its attempt runs, or its outcome is being written."""
        running = self._running.get((task, version))
        return running is not None and (running.settled or running.task is None or not running.task.done())

    @property
    def room(self) -> int:
        """Claims that may be taken now: as many may wait here as may run, and more of those that end soon.

        None while more than half of those are here: a statement for a few claims costs as much as one for many.
        Outcomes on their way to PostgreSQL take no room, up to two batches of them, nor does what waits for its turn.
        """
        slots = self._concurrency - len(self._stuck)
        in_line = self._slots.in_line(slots)
        room = slots + in_line - self._active + min(self._outcomes.under_way, 2 * SETTLE_BATCH)
        return room if room > 0 and 2 * room >= in_line else 0

    @property
    def stuck_for(self) -> float:
        """Seconds for which all slots have been those of stuck threads; 0: they are not. Any thread may ask."""
        since = self._all_stuck_since
        return 0.0 if since is None else self._clock() - since

    @property
    def _active(self) -> int:
        """Claims that do not wait for their turn."""
        return len(self._running) - sum(claims for turn, claims in self._turns.items() if not turn.is_set())

    async def wait_for_room(self) -> None:
        """Return once `room` is not zero."""
        while not self.room:
            self._room.clear()
            await self._room.wait()

    async def wait_until_idle(self) -> None:
        """Return once nothing is in flight but what waits for its turn, and no thread is stuck."""
        while self._active or self._stuck:
            self._room.clear()
            await self._room.wait()

    def start(
        self,
        claim: Claim,
        term: int,
        *,
        turn: asyncio.Event | None = None,
        probe: bool = False,
        sent: str | None = None,
        received: str | None = None,
    ) -> None:
        """Run `claim`, made in `term` of the lease, as soon as a slot is free, and not before `turn` is set.

        `probe` marks the one that is let through an open circuit. `sent` is the traceparent of its record, `received`
        that of the claim's span.
        """
        running = Running(claim, term, probe, self._clock(), copy_context(), turn, sent, received)
        self._running[claim.id, claim.version] = running
        if turn is not None:
            self._turns[turn] += 1
        if turn is None and claim.payload is not None and len(claim.payload) <= LIGHT:
            self._slots.enter(running)
            if (refusal := self._closed) is not None:
                self._let_go(running, refusal)
        else:  # it waits for something else first, and holds no slot meanwhile
            running.task = asyncio.create_task(self._run(running), context=running.context)

    def release_waiting(self, turn: asyncio.Event | None, reason: str) -> None:
        """Release those claims of this turn (None: of none) that have not begun, at no cost."""
        for running in self._at(Stage.WAITING):
            if running.turn is turn:
                self._let_go(running, reason)

    def _let_go(self, running: Running, reason: str) -> None:
        """Release what has not begun."""
        running.released = reason
        if running.task is not None:
            cancel(running)
        else:
            self._slots.leave(running)
            running.context.run(self._settle, running, release(reason, releases=running.claim.releases))

    @property
    def _closed(self) -> str | None:
        """Why nothing may begin here any more."""
        return WORKER_ENDED if self._draining else ALL_STUCK if self._all_stuck_since is not None else None

    def release(self, claim: Claim) -> None:
        """Settle a claim of this worker of which `runs` is false: PostgreSQL has it, and no attempt here does."""
        key = claim.id, claim.version
        lost = self._lost.get(key) or self._running.get(key)  # this one was cancelled before its first step
        if lost is None:
            lost = Running(claim, self.lease.term, False, self._clock(), copy_context())
        if lost.called:
            decision = self._decision(lost, Ambiguous(ATTEMPT_LOST))
        else:
            decision = release(ATTEMPT_LOST, releases=claim.releases)
        log.error("a claim no longer had an attempt", extra={"task_id": str(claim.id)})
        self._lost.pop(key, None)
        self._running[key] = lost
        self._settle(lost, decision)

    async def drain(self, seconds: float, hurry: asyncio.Event, last_cut: float = LAST_CUT) -> None:
        """Release what has not begun, give the rest `seconds`, cut off what is left, and settle it all.

        What is cut off has `last_cut` seconds to end.
        """
        self._draining = True
        for running in self._at(Stage.WAITING):
            self._let_go(running, WORKER_ENDED)
        await self._settled(seconds, hurry)
        for running in self._at(Stage.CALLED):
            self._cut(running, CUT_BY_DRAIN)
        await self._settled(last_cut, asyncio.Event())
        for running in self._at(Stage.CALLED):
            self._leave(running)
        await self._settled(LAST_SETTLES - last_cut, asyncio.Event())
        if self._running:
            log.warning("outcomes could not be written: their lease will expire", extra={"tasks": len(self._running)})
            self._outcomes.give_up()
        self._threads.close()

    def _at(self, stage: Stage) -> list[Running]:
        return [running for running in self._running.values() if running.stage is stage]

    async def wait_until_settled(self) -> None:
        """Return once nothing is in flight."""
        while self._running:
            self._empty.clear()
            await self._empty.wait()

    async def _settled(self, seconds: float, hurry: asyncio.Event) -> None:
        """Wait until nothing is in flight, for `seconds` at most, and not once `hurry` is set."""
        if not self._running:
            return
        waits = [asyncio.create_task(each) for each in (self.wait_until_settled(), hurry.wait())]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()

    def _forget(self, key: tuple[UUID, int]) -> None:
        running = self._running.pop(key)
        if running.turn is not None:
            self._turns[running.turn] -= 1
            self._turns += Counter()  # drops those that are at zero
        self._room.set()
        if not self._running:
            self._empty.set()

    # The way of one claim ------------------------------------------------------------------------------------------

    async def _run(self, running: Running) -> None:
        claim = running.claim
        logs.TASK.set(claim.id)  # the context is the attempt's own: nothing has to be set back
        TRACE.set(claim.traceparent)
        try:
            if tracing.on and tracing.sampled(claim.traceparent):
                span = running.span = attempt_span(self.source, claim, running.sent, running.received)
                TRACE.set(span.traceparent)  # what is told of the attempt once it has ended stands in its span, too
                with span:
                    decision = await self._attempt(running)
                    if decision is not None:
                        span.note("taskflux.outcome", decision.event)
                        if decision.event in _FAILED and decision.error_class is not None:
                            span.failed(decision.error_class)
            else:
                decision = await self._attempt(running)
            if decision is not None:
                self._settle(running, decision)
        finally:
            if not running.settled:  # a fault of ours: `release` settles it when the worker compares its claims
                key = claim.id, claim.version
                self._lost[key] = running
                running.task = None
                self._forget(key)
                running.turn = None

    def _settle(self, running: Running, decision: Decision) -> None:
        claim, span = running.claim, running.span
        running.stage = Stage.SETTLING
        recorded = None if span is None else span.traceparent
        settlement = Settlement(claim.id, claim.version, decision, recorded, running.seconds)
        self._outcomes.write(claim, settlement, partial(self._forget, (claim.id, claim.version)))
        running.settled = True
        self._room.set()  # who waits for it looks again once this is under way

    async def _attempt(self, running: Running) -> Decision | None:
        """What follows one attempt; None where that was settled meanwhile.

        The one boundary: whatever its handler does, raises or says ends here.
        """
        claim, error, result = running.claim, None, None
        try:
            if running.turn is not None:
                running.stage = Stage.WAITING
                await running.turn.wait()
                running.stage = Stage.READING
            payload = claim.payload
            if payload is None or len(payload) > LIGHT:
                payload = await self._payloads.of(running)
            if len(payload) < LARGE:
                task = task_of(self.handler, claim, payload)
            else:
                task = await asyncio.to_thread(task_of, self.handler, claim, payload)
            del payload
            running.stage = Stage.WAITING
            refusal = self._closed
            if refusal is None:
                if not running.slot:
                    await self._slots.take(running)
                refusal = self._unfit(running)
                if refusal is None and not self._gate.passes_all:
                    # The wait for the rate limit may have been long.
                    refusal = await self._gate.refusal(probe=running.probe) or self._unfit(running)
            if refusal is not None:
                return release(refusal, releases=claim.releases)
            result = await self._call(running, task)
        except BaseException as raised:  # noqa: BLE001
            error = error_of(self.handler, running, raised)
            if error is None:  # it was cancelled while it waited
                why = WORKER_ENDED if self._draining else running.released or NEVER_BEGUN
                return release(why, releases=claim.releases)
        finally:
            self._free(running)
        if running.settled:
            log.warning("a handler that was abandoned has ended")
            return None
        serves_others = not self._gate.passes_all and await self._tell(running, error)
        if error is None:
            return _DONE if result is None else replace(_DONE, result=result)
        return self._decision(running, error, serves_others=serves_others)

    def _free(self, running: Running) -> None:
        if running.in_thread:
            return  # the thread keeps what its attempt had
        if running.room:
            self._payloads.give(running)
        if running.slot:
            self._slots.give(running)

    def _unfit(self, running: Running) -> str | None:
        """Why this worker may not call the handler now."""
        if not self.lease.covers(running.term):
            return LEASE_LOST
        return WORKER_ENDED if self._draining else None

    async def _call(self, running: Running, task: Task[Any]) -> Mapping[str, Any] | None:
        """The handler's result.

        Raises:
            BaseException: whatever it raises, a CancelledError where it took too long.
        """
        work = self.handler.function
        arguments = (task,) if self.handler.provider is None else (task, self._gate.client)
        blocking, answer = self._blocking, None
        if blocking:
            answer = self._threads.call(partial(work, *arguments), partial(self._thread_ended, running))
            running.in_thread = True
        running.stage, running.since = Stage.CALLED, self._clock()
        self._deadlines.begin(running)
        try:
            receipt = await (self._returned(running, answer) if answer else work(*arguments))
        finally:
            self._deadlines.end(running)
            if running.again is not None:
                running.again.cancel()
            running.stage = Stage.SETTLING  # what is known now must not be cut off
            running.seconds = self._clock() - running.since
        return result_of(receipt, self.handler.type)

    async def _returned(self, running: Running, answer: asyncio.Future[Outcome]) -> object:
        """What a plain function returns or raises; it is stuck where its attempt is cancelled first."""
        try:
            result, error = await answer
        except asyncio.CancelledError:
            if answer.cancelled():
                if running.in_thread:
                    self._strand(running)
                raise
            result, error = answer.result()  # it was cancelled by other code, after it had returned
        if error is not None:
            raise error
        return result

    def _strand(self, running: Running) -> None:
        """Count the thread of an attempt that is over. Once all are stuck, other workers may run what waits here."""
        self._stuck.add(running)
        about = {"type": self.handler.type, "stuck": len(self._stuck), "slots": self._concurrency}
        log.error("a thread is stuck: its attempt is over, and it keeps its slot until it returns", extra=about)
        if len(self._stuck) == self._concurrency and not self._draining:
            self._all_stuck_since = self._clock()
            log.error("all threads are stuck: the worker takes no tasks until one returns", extra=about)
            for each in self._at(Stage.WAITING):
                self._let_go(each, ALL_STUCK)

    def _thread_ended(self, running: Running, in_time: bool) -> None:
        running.in_thread = False
        if in_time:
            running.stage = Stage.SETTLING  # it must not be cut off any more
        if running not in self._stuck:
            return
        self._stuck.remove(running)
        self._free(running)
        about = {"type": self.handler.type, "task_id": str(running.claim.id), "stuck": len(self._stuck)}
        log.warning("a stuck thread has returned: what it says counts for nothing", extra=about)
        if self._all_stuck_since is not None:
            self._all_stuck_since = None
            log.warning("the worker takes tasks again", extra=about)
        self._room.set()

    def _late(self, running: Running) -> None:
        limit = f"{self.handler.policy.timeout:g} s"
        self._cut(
            running,
            (f"its thread had not returned after {limit}" if self._blocking else f"it was cut off after {limit}"),
        )

    def _cut(self, running: Running, why: str) -> None:
        """Cancel an attempt whose handler runs. One that ignores it is cut off again, and then abandoned."""
        if running.stage is not Stage.CALLED:
            return
        self._deadlines.end(running)
        if running.again is not None:
            running.again.cancel()
        running.cut = running.cut or why
        if running.cuts == CUTS:
            self._leave(running)
            return
        running.cuts += 1
        running.again = asyncio.get_running_loop().call_later(self._patience, self._cut, running, why)
        cancel(running)

    def _leave(self, running: Running) -> None:
        """Settle an attempt whose handler does not end; what that says later counts for nothing."""
        running.seconds = self._clock() - running.since
        self._free(running)
        running.context.run(self._left, running)

    def _left(self, running: Running) -> None:
        log.error("a handler ignores that it was cut off: it is abandoned", extra={"type": self.handler.type})
        self._settle(running, self._decision(running, Ambiguous(f"{running.cut}, and did not end")))

    async def _tell(self, running: Running, error: TaskError | None) -> bool:
        """Let the provider's circuit learn how a call has ended: before it, there was nothing to learn.

        Whether the provider failed for this task while it serves others.
        """
        if running.seconds is None:
            return False
        try:
            # An invalid payload is refused before its provider is asked.
            if error is None or (isinstance(error, Permanent) and not isinstance(error, InvalidPayload)):
                await self._gate.served(running.claim.id)
            elif isinstance(error, ProviderError):
                return await self._gate.failed(running.claim.id, error, running.since, probe=running.probe)
        except asyncio.CancelledError:  # by what the handler has left behind: what follows is known all the same
            log.warning("an attempt was cancelled after its handler had ended")
        return False

    def _decision(self, running: Running, error: TaskError, *, serves_others: bool = False) -> Decision:
        """What follows `error`; `serves_others`: its provider failed for it alone."""
        claim = running.claim
        metrics.ERRORS.labels(self.handler.type, metrics.error_class(error.error_class)).inc()
        attempt = Attempt(claim.attempt, claim.max_attempts, claim.releases, serves_others)
        return decide(self.handler.policy, attempt, error, self._jitter())
