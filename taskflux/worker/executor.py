"""A claim as its handler sees it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final
from uuid import UUID

from taskflux.providers.provider import Checkable
from taskflux.store.claims import Claim, Claims
from taskflux.tasks.decision import Attempt, Decision, decide, hand_back, succeeded
from taskflux.tasks.errors import Ambiguous, Crash, Expired, Permanent, ProviderError, TaskError, WorkerLost
from taskflux.tasks.model import Receipt, Task
from taskflux.telemetry import logs, message_spans
from taskflux.telemetry.calls import TRACE
from taskflux.worker import outcomes
from taskflux.worker.attempt_metrics import AttemptMetrics
from taskflux.worker.circuits import Gate, Limiter
from taskflux.worker.handler import Handler
from taskflux.worker.lease import Lease


def task_of(task_type: str, claim: Claim, payload: Any) -> Task[Any]:
    """The task that was claimed, with its payload as the handler takes it."""
    return Task(
        claim.id,
        task_type,
        payload,
        claim.attempt,
        claim.max_attempts,
        claim.replays,
        claim.created_at,
        claim.tenant,
        claim.key,
        _object(claim.metadata),
        _object(claim.progress),
    )


def _object(text: str | None) -> Mapping[str, Any]:
    return json.loads(text) if text else {}


log = logging.getLogger(__name__)

LEASE_LOST: Final = "the worker could not renew its lease"
LAST_SETTLES: Final = 5.0
"""Seconds that a process which ends waits for its outcomes to be written."""


class _Stage(Enum):
    WAITING = auto()  # for a slot or a turn: nothing has happened yet
    RUNNING = auto()  # its handler was called
    SETTLING = auto()  # what follows is decided, and must be written


@dataclass(slots=True)
class _Running:
    """A claim in this process."""

    task: asyncio.Task[None]
    stage: _Stage = _Stage.WAITING
    span: message_spans.Attempt | None = None
    recorded: str | None = None  # the traceparent of its span


class Executor:
    """Runs claims of one handler, `concurrency` at once, and settles them in groups."""

    def __init__(
        self,
        handler: Handler[Any],
        client: object | None,
        claims: Claims,
        lease: Lease,
        gate: Gate,
        limiter: Limiter,
        concurrency: int,
        source: message_spans.Destination,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._handler = handler
        self._client = client
        self._source = source
        self._lease = lease
        self._gate = gate
        self._limiter = limiter
        self._jitter = jitter
        self.concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._running: dict[tuple[UUID, int], _Running] = {}  # a task whose lease was lost may come again meanwhile
        self._room = asyncio.Event()
        self._draining = False
        self._metrics = AttemptMetrics(handler.type)
        self._metrics.show(self)
        self._outcomes = outcomes.Outcomes(handler.type, claims, source, self._metrics)

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
        return max(0, 2 * self.concurrency - len(self._running) + min(self._outcomes.under_way, 2 * outcomes.BATCH))

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
        task = asyncio.create_task(self._run(claim, term, probe, sent, received))
        self._running[claim.id, claim.version] = _Running(task)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Hand back what has not begun, give the rest `seconds`, cut off what is left, and settle it all."""
        self._draining = True
        self._cancel(_Stage.WAITING)
        await self._wait_for_all(seconds, hurry)
        self._cancel(_Stage.RUNNING)
        await self._wait_for_all(LAST_SETTLES, asyncio.Event())
        if self._running:
            log.warning("outcomes could not be written: their lease will run out", extra={"tasks": len(self._running)})
            self._cancel(_Stage.SETTLING)

    def _cancel(self, stage: _Stage) -> None:
        for running in self._running.values():
            if running.stage is stage:
                running.task.cancel()

    async def _wait_for_all(self, seconds: float, hurry: asyncio.Event) -> None:
        impatient = asyncio.create_task(hurry.wait())
        try:
            async with asyncio.timeout(seconds):
                while self._running and not hurry.is_set():
                    tasks = [running.task for running in self._running.values()]
                    await asyncio.wait([*tasks, impatient], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        finally:
            impatient.cancel()

    # The way of one claim ------------------------------------------------------------------------------------------

    async def _run(self, claim: Claim, term: int, probe: bool, sent: str | None, received: str | None) -> None:
        logs.TASK.set(claim.id)  # this asyncio task is the attempt's own: nothing has to be set back
        TRACE.set(claim.traceparent)
        running = self._running[claim.id, claim.version]
        try:
            with message_spans.processing(self._source, claim, sent, received) as span:
                if span is not None:
                    running.span, running.recorded = span, span.traceparent
                decision = await self._attempt(claim, term, probe)
                if span is not None:
                    span.decided(decision)
            running.stage = _Stage.SETTLING
            self._room.set()  # who waits for it looks again once this is under way
            await self._outcomes.write(claim, decision, running.recorded)
        finally:
            del self._running[claim.id, claim.version]
            self._room.set()

    async def _attempt(self, claim: Claim, term: int, probe: bool) -> Decision:
        running, loop = self._running[claim.id, claim.version], asyncio.get_running_loop()
        since, error = loop.time(), None
        try:
            payload = self._check(claim)
            async with self._slots:
                refusal = await self._refusal(term, probe)
                if refusal is not None:
                    return hand_back(refusal, handbacks=claim.handbacks)
                running.stage, since = _Stage.RUNNING, loop.time()
                result = await self._call(claim, payload)
        except TaskError as raised:
            _record(running, raised)
            error = raised
        except asyncio.CancelledError:  # only draining cancels
            if running.stage is _Stage.WAITING:
                return hand_back("the worker ended before it began", handbacks=claim.handbacks)
            error = Ambiguous("it was cut off when its worker ended")
        except Exception as raised:  # noqa: BLE001 - the one boundary: whatever a handler raises becomes a decision
            # Where it happened, without what it says: that may name a person, and is kept on the row alone.
            log.error("a handler crashed\n%s", logs.frames(raised), extra={"error_class": type(raised).__name__})
            _record(running, raised)
            error = Crash(f"{type(raised).__name__}: {raised}")
        if running.stage is _Stage.RUNNING:
            running.stage = _Stage.SETTLING  # what is known now must not be cut off
            self._metrics.processed(loop.time() - since, running.recorded)
            await self._judge(claim, error)
        return succeeded(result) if error is None else self._decide(claim, error, since=since)

    def _check(self, claim: Claim) -> Any:
        if claim.expired:
            raise Expired("its expiresAt had passed when a worker took it")
        if claim.attempt > claim.max_attempts:
            raise WorkerLost("its last attempts ended with the loss of their workers")
        return self._handler.parse(claim.payload)

    async def _refusal(self, term: int, probe: bool) -> str | None:
        """Why nothing may be asked of the provider now; waits for its rate limit where nothing speaks against it."""
        if not self._lease.covers(term):
            return LEASE_LOST
        if self._gate.open:
            if not probe:
                return "the provider's circuit is open"
            if isinstance(self._client, Checkable):
                try:
                    await self._client.check()
                except ProviderError as error:
                    return f"the provider was probed: {error.reason}"
                await self._gate.served()
        await self._limiter.turn()
        if self._draining:
            return "the worker ended before it began"
        return None if self._lease.covers(term) else LEASE_LOST  # the wait may have been long

    async def _call(self, claim: Claim, payload: Any) -> Mapping[str, Any] | None:
        """The handler's result.

        Raises:
            Exception: whatever it raises; Ambiguous where it took too long.
        """
        task, seconds = task_of(self._handler.type, claim, payload), self._handler.policy.timeout
        arguments = (task,) if self._handler.provider is None else (task, self._client)
        try:
            async with asyncio.timeout(seconds) as limit:
                receipt = await self._handler.function(*arguments)
        except TimeoutError:
            if limit.expired():
                raise Ambiguous(f"it was cut off after {seconds:g} s") from None
            raise
        if receipt is not None and not isinstance(receipt, Receipt):
            # It was done all the same: tried again, it would be done twice.
            log.error("a handler returned something else than a Receipt", extra={"type": self._handler.type})
            return None
        return receipt.result if receipt else None

    async def _judge(self, claim: Claim, error: TaskError | None) -> None:
        """What the provider's circuit learns from an attempt."""
        if isinstance(error, ProviderError):
            await self._gate.failed(claim.id, error)
        elif error is None or isinstance(error, Permanent):
            await self._gate.served()

    def _decide(self, claim: Claim, error: TaskError, *, since: float) -> Decision:
        self._metrics.error(error.error_class)
        attempt = Attempt(claim.attempt, claim.max_attempts, claim.handbacks, self._gate.succeeded_since(since))
        try:
            return decide(self._handler.policy, attempt, error, self._jitter())
        except TypeError as fault:  # a kind of TaskError that is none of ours, or a retry_after that is no number
            return decide(self._handler.policy, attempt, Crash(f"{error.error_class}: {fault}"), self._jitter())


def _record(running: _Running, error: BaseException) -> None:
    if running.span is not None:
        running.span.raised(error)
