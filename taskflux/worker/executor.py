"""The way of a claim through its worker: the lease that guards it, what its handler is given, what follows."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final
from uuid import UUID

from taskflux.store.claims import SETTLE_BATCH, Claim, Claims, Settlement
from taskflux.tasks.decision import Attempt, Decision, decide, hand_back
from taskflux.tasks.errors import Ambiguous, Crash, Expired, Permanent, ProviderError, TaskError, WorkerLost
from taskflux.tasks.model import Receipt, Task
from taskflux.tasks.states import Event, State
from taskflux.telemetry import logs, metrics, tracing
from taskflux.telemetry.tracing import TRACE
from taskflux.worker.circuits import Gate
from taskflux.worker.handler import Handler
from taskflux.worker.outcomes import Outcomes

log = logging.getLogger(__name__)

LEASE_LOST: Final = "the worker could not renew its lease"
WORKER_ENDED: Final = "the worker ended before it began"
LAST_SETTLES: Final = 5.0
"""Seconds that a process which ends waits for its outcomes to be written."""


_FAILED: Final = frozenset({Event.RETRY, Event.DIED, Event.HELD, Event.HANDED_BACK})


# macOS has no CLOCK_BOOTTIME: its CLOCK_MONOTONIC goes on while it sleeps, and that of Linux does not.
_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds that no step of the machine's time changes, and that go on while the machine is suspended."""
    return time.clock_gettime(_BOOTTIME)


class Lease:
    """A worker's one row, which guards all its `claims`; valid for `seconds` from the beginning of the last good beat.

    Once it was ended, by whomever, no beat brings it back: the worker goes on under a new identity, without what it
    held. `clock` counts on while the machine is suspended, so that a worker which wakes begins nothing of what it held.
    """

    def __init__(self, claims: Claims, seconds: float, clock: Callable[[], float] = boottime) -> None:
        self.claims = claims
        self.term = 0
        """The number of this lease: one that is renewed after it had expired, or had been ended, is another."""
        self._seconds = seconds
        self._clock = clock
        self._until = float("-inf")
        self._renewing = asyncio.Lock()

    @property
    def valid(self) -> bool:
        """Whether our claims are surely still ours."""
        return self._clock() < self._until

    def covers(self, term: int) -> bool:
        """Whether claims made in `term` are surely still ours: after a gap, somebody else may hold them."""
        return term == self.term and self.valid

    def lose(self) -> None:
        """The store has said that it was ended: nothing is covered before the next beat."""
        self._until = float("-inf")

    async def renew(self, in_flight: int) -> None:
        """Beat once, with the number of claims that are not settled.

        Raises:
            StoreError: it is not known to be renewed.
        """
        async with self._renewing:  # two would take two identities
            began = self._clock()
            if not await self.claims.beat(in_flight):
                self.lose()
                if self.term:
                    log.warning("the lease was ended: the worker goes on with a new one, without what it held")
                began = self._clock()
                await self.claims.begin(in_flight)
            if began >= self._until:
                self.term += 1
            self._until = began + self._seconds


class _Stage(Enum):
    WAITING = auto()  # for a slot or a turn: nothing has happened yet
    CALLED = auto()  # its handler runs
    SETTLING = auto()  # what follows is known, and must be written


@dataclass(slots=True, eq=False)
class _Running:
    """A claim in this process, made in `term` of the lease; `probe`: it is let through an open circuit."""

    claim: Claim
    term: int
    probe: bool
    since: float
    stage: _Stage = _Stage.WAITING
    seconds: float | None = None  # that its handler took
    span: tracing.Span | None = None  # where its trace is recorded


class Executor:
    """Runs claims of one handler, `concurrency` at once.

    Each goes the same way: `_task` makes of it what the handler is given, `_refusal` looks whether the handler may be
    called, `_call` calls it, `_failed` decides what follows an error, and the outcome is written. Everything that a
    handler does or raises stays in `_attempt`, which has one clause for each way that an attempt can end.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.handler = handler
        self.lease = lease
        self.source = lease.claims.source
        self._gate = gate
        self._outcomes = outcomes
        self._jitter = jitter
        self._clock = clock
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        # By task and version: a task whose lease was lost may come again meanwhile.
        self._running: dict[tuple[UUID, int], tuple[_Running, asyncio.Task[None]]] = {}
        self._room = asyncio.Event()
        self._draining = False
        metrics.CONCURRENCY.labels(handler.type).set(concurrency)
        metrics.IN_FLIGHT.labels(handler.type).follow(self, lambda executor: executor.in_flight)
        metrics.ERRORS.zeros(handler.type, metrics.TASK_ERRORS)

    @property
    def in_flight(self) -> int:
        """Claims that are not settled."""
        return len(self._running)

    def holds(self, task: UUID, version: int) -> bool:
        """Whether the claim of `task` at `version` is not settled yet."""
        return (task, version) in self._running

    @property
    def room(self) -> int:
        """Claims that may be taken now: as many may wait here as may run.

        Outcomes on their way to PostgreSQL take no room, up to two batches of them.
        """
        return max(0, 2 * self._concurrency - len(self._running) + min(self._outcomes.under_way, 2 * SETTLE_BATCH))

    async def wait_for_room(self) -> None:
        """Return once `room` is not zero."""
        while not self.room:
            self._room.clear()
            await self._room.wait()

    def start(
        self, claim: Claim, term: int, *, probe: bool = False, sent: str | None = None, received: str | None = None
    ) -> None:
        """Run `claim`, made in `term` of the lease, as soon as a slot is free.

        `probe` marks the one that is let through an open circuit. `sent` is the traceparent of its record, `received`
        that of the claim's span.
        """
        running = _Running(claim, term, probe, self._clock())
        task = asyncio.create_task(self._run(running, sent, received))
        self._running[claim.id, claim.version] = running, task

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Hand back what has not begun, give the rest `seconds`, cut off what is left, and settle it all."""
        self._draining = True
        self._cancel(_Stage.WAITING)
        await self._wait_for_all(seconds, hurry)
        self._cancel(_Stage.CALLED)
        await self._wait_for_all(LAST_SETTLES, asyncio.Event())
        if self._running:
            log.warning("outcomes could not be written: their lease will run out", extra={"tasks": len(self._running)})
            self._cancel(_Stage.SETTLING)

    def _cancel(self, stage: _Stage) -> None:
        for running, task in self._running.values():
            if running.stage is stage:
                task.cancel()

    async def _wait_for_all(self, seconds: float, hurry: asyncio.Event) -> None:
        impatient = asyncio.create_task(hurry.wait())
        try:
            async with asyncio.timeout(seconds):
                while self._running and not hurry.is_set():
                    tasks = [task for _, task in self._running.values()]
                    await asyncio.wait([*tasks, impatient], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        finally:
            impatient.cancel()

    # The way of one claim ------------------------------------------------------------------------------------------

    async def _run(self, running: _Running, sent: str | None, received: str | None) -> None:
        claim = running.claim
        logs.TASK.set(claim.id)  # this asyncio task is the attempt's own: nothing has to be set back
        TRACE.set(claim.traceparent)
        try:
            recorded = None
            if tracing.on and tracing.sampled(claim.traceparent):
                span = running.span = attempt_span(self.source, claim, sent, received)
                recorded = span.traceparent
                TRACE.set(recorded)  # what is told of the attempt once it has ended stands in its span, too
                with span:
                    decision = await self._attempt(running)
                    span.note("taskflux.outcome", decision.event)
                    if decision.event in _FAILED and decision.error_class is not None:
                        span.failed(decision.error_class)
            else:
                decision = await self._attempt(running)
            running.stage = _Stage.SETTLING
            self._room.set()  # who waits for it looks again once this is under way
            settlement = Settlement(claim.id, claim.version, decision, recorded, running.seconds)
            await self._outcomes.write(claim, settlement)
        finally:
            del self._running[claim.id, claim.version]
            self._room.set()

    async def _attempt(self, running: _Running) -> Decision:
        """What follows one attempt."""
        claim = running.claim
        try:
            task = self._task(claim)
            async with self._slots:
                refusal = await self._refusal(running)
                if refusal is not None:
                    return hand_back(refusal, handbacks=claim.handbacks)
                result = await self._call(running, task)
        except TaskError as error:
            return await self._failed(running, error, raised=error)
        except asyncio.CancelledError:  # only draining cancels
            if running.stage is _Stage.WAITING:
                return hand_back(WORKER_ENDED, handbacks=claim.handbacks)
            return await self._failed(running, Ambiguous("it was cut off when its worker ended"))
        except Exception as error:  # noqa: BLE001 - the one boundary: whatever a handler raises becomes a decision
            # Where it happened, without what it says: that may name a person, and is kept on the row alone.
            log.error("a handler crashed\n%s", logs.frames(error), extra={"error_class": type(error).__name__})
            return await self._failed(running, Crash(f"{type(error).__name__}: {error}"), raised=error)
        await self._gate.served()
        return Decision(Event.SUCCEEDED, State.SUCCEEDED, result=result)

    def _task(self, claim: Claim) -> Task[Any]:
        """The claimed task as its handler is given it.

        Raises:
            Permanent: it must not be run any more, or is not what the handler declared.
        """
        if claim.expired:
            raise Expired("its expiresAt had passed when a worker took it")
        if claim.attempt > claim.max_attempts:
            raise WorkerLost("its last attempts ended with the loss of their workers")
        return Task(
            claim.id,
            self.handler.type,
            self.handler.parse(claim.payload),
            claim.attempt,
            claim.max_attempts,
            claim.replays,
            claim.created_at,
            claim.tenant,
            claim.key,
            json.loads(claim.metadata) if claim.metadata else {},
            json.loads(claim.progress) if claim.progress else {},
        )

    async def _refusal(self, running: _Running) -> str | None:
        """Why the handler may not be called now; where nothing speaks against it, waits for the rate limit."""
        if not self.lease.covers(running.term):
            return LEASE_LOST
        refusal = await self._gate.refusal(probe=running.probe)
        if refusal is not None:
            return refusal
        if self._draining:
            return WORKER_ENDED
        return None if self.lease.covers(running.term) else LEASE_LOST  # the wait may have been long

    async def _call(self, running: _Running, task: Task[Any]) -> Mapping[str, Any] | None:
        """The handler's result.

        Raises:
            Exception: whatever it raises; Ambiguous where it took too long.
        """
        limit = self.handler.policy.timeout
        arguments = (task,) if self.handler.provider is None else (task, self._gate.client)
        running.stage, running.since = _Stage.CALLED, self._clock()
        try:
            async with asyncio.timeout(limit) as timeout:
                receipt = await self.handler.function(*arguments)
        except TimeoutError:
            if timeout.expired():
                raise Ambiguous(f"it was cut off after {limit:g} s") from None
            raise
        finally:
            running.stage = _Stage.SETTLING  # what is known now must not be cut off
            running.seconds = self._clock() - running.since
        if receipt is not None and not isinstance(receipt, Receipt):
            # It was done all the same: tried again, it would be done twice.
            log.error("a handler returned something else than a Receipt", extra={"type": self.handler.type})
            return None
        return receipt.result if receipt else None

    async def _failed(self, running: _Running, error: TaskError, raised: Exception | None = None) -> Decision:
        """What follows `error`, and what the provider's circuit learns from it; `raised` is what the span shows."""
        claim = running.claim
        if running.span is not None and raised is not None:
            running.span.raised(raised)
        if running.seconds is not None:  # before the call it said nothing of the provider
            if isinstance(error, ProviderError):
                await self._gate.failed(claim.id, error)
            elif isinstance(error, Permanent):
                await self._gate.served()
        metrics.ERRORS.labels(self.handler.type, metrics.error_class(error.error_class)).inc()
        others_succeeded = self._gate.succeeded_since(running.since)
        attempt = Attempt(claim.attempt, claim.max_attempts, claim.handbacks, others_succeeded)
        try:
            return decide(self.handler.policy, attempt, error, self._jitter())
        except TypeError as fault:  # a kind of TaskError that is none of ours, or a retry_after that is no number
            return decide(self.handler.policy, attempt, Crash(f"{error.error_class}: {fault}"), self._jitter())


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
