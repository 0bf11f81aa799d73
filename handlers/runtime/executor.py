"""One attempt, from claim to settlement.

The only place where a handler's code is run and where whatever it raises is caught.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final
from uuid import UUID

from handlers.providers.provider import Checkable
from handlers.runtime import logs, metrics, tracing
from handlers.runtime.circuits import Gate
from handlers.runtime.handler import Handler
from handlers.runtime.lease import Lease
from handlers.runtime.limiter import Limiter
from handlers.store.claims import Claim, Claims, Settled, Settlement
from handlers.store.errors import StoreError
from handlers.store.group_commit import GroupCommit
from handlers.tasks.decision import Attempt, Decision, decide, hand_back, succeeded
from handlers.tasks.errors import Ambiguous, Crash, Expired, Permanent, ProviderError, TaskError, WorkerLost
from handlers.tasks.model import Receipt, Task
from handlers.tasks.states import Event

log = logging.getLogger(__name__)

SETTLE_BATCH: Final = 500
SETTLES: Final = (Event.SUCCEEDED, Event.RETRY, Event.HANDED_BACK, Event.DIED, Event.HELD)
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
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._handler = handler
        self._client = client
        self._lease = lease
        self._gate = gate
        self._limiter = limiter
        self._jitter = jitter
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._running: dict[UUID, _Running] = {}
        self._room = asyncio.Event()
        self._draining = False
        self._settle: GroupCommit[Settlement, Settled] = GroupCommit(
            claims.settle,
            identity=lambda settlement: settlement.id,
            max_items=SETTLE_BATCH,
            observe=metrics.BATCH.labels("settle").observe,
        )
        self._metrics = _Metrics(handler.type)

    @property
    def in_flight(self) -> int:
        """Claims that are not settled."""
        return len(self._running)

    def holds(self, task: UUID) -> bool:
        """Whether a claim of `task` is not settled yet."""
        return task in self._running

    @property
    def room(self) -> int:
        """Claims that may be taken now: as many may wait here as may run."""
        return max(0, 2 * self._concurrency - len(self._running))

    async def wait_for_room(self) -> None:
        """Return once `room` is not zero."""
        while not self.room:
            self._room.clear()
            await self._room.wait()

    def start(self, claim: Claim, *, probe: bool = False) -> None:
        """Run `claim` as soon as a slot is free. `probe` marks the one that is let through an open circuit."""
        task = asyncio.create_task(self._run(claim, probe))
        self._running[claim.id] = _Running(task)
        self._metrics.in_flight.inc()

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Hand back what has not begun, give the rest `seconds`, cut off what is left, and settle it all."""
        self._draining = True
        self._cancel(_Stage.WAITING)
        await self._wait_for_all(seconds, hurry)
        self._cancel(_Stage.RUNNING)
        await self._wait_for_all(LAST_SETTLES, asyncio.Event())
        if self._running:
            log.warning("outcomes could not be written: their lease will run out", extra={"tasks": len(self._running)})

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

    async def _run(self, claim: Claim, probe: bool) -> None:
        token = logs.TASK.set((str(claim.id), tracing.trace_id(claim.traceparent)))
        try:
            decision = await self._attempt(claim, probe)
            await self._write(claim, decision)
        finally:
            logs.TASK.reset(token)
            del self._running[claim.id]
            self._metrics.in_flight.dec()
            self._room.set()

    async def _attempt(self, claim: Claim, probe: bool) -> Decision:
        try:
            payload = self._check(claim)
            async with self._slots:
                refusal = await self._refusal(probe)
                if refusal is None:
                    await self._limiter.turn()
                    return await self._call(claim, payload)
        except TaskError as error:
            return self._decide(claim, error, since=asyncio.get_running_loop().time())
        except asyncio.CancelledError:
            # Only draining cancels, and the handler was not called yet.
            return hand_back("the worker ended before it began", handbacks=claim.handbacks)
        return hand_back(refusal, handbacks=claim.handbacks)

    def _check(self, claim: Claim) -> Any:
        if claim.expired:
            raise Expired("its expiresAt had passed when a worker took it")
        if claim.attempt > claim.max_attempts:
            raise WorkerLost("its last attempts ended with the loss of their workers")
        return self._handler.parse(claim.payload)

    async def _refusal(self, probe: bool) -> str | None:
        """Why nothing may be asked of the provider now."""
        if self._draining:
            return "the worker ended before it began"
        if not self._lease.valid:
            return "the worker could not renew its lease"
        if not self._gate.open:
            return None
        if not probe:
            return "the provider's circuit is open"
        if isinstance(self._client, Checkable):
            try:
                await self._client.check()
            except ProviderError as error:
                return f"the provider was probed: {error.reason}"
            await self._gate.served()
        return None

    async def _call(self, claim: Claim, payload: Any) -> Decision:
        policy, loop = self._handler.policy, asyncio.get_running_loop()
        started = loop.time()
        self._running[claim.id].stage = _Stage.RUNNING
        try:
            with self._span(claim):
                async with asyncio.timeout(policy.timeout) as limit:
                    receipt = await self._invoke(_task(self._handler.type, claim, payload))
        except TaskError as error:
            await self._judge(claim, error)
            return self._decide(claim, error, since=started)
        except asyncio.CancelledError:
            return self._decide(claim, Ambiguous("it was cut off when its worker ended"), since=started)
        except Exception as error:  # the one boundary: whatever a handler raises becomes a decision
            if isinstance(error, TimeoutError) and limit.expired():
                cut_off = Ambiguous(f"it was cut off after {policy.timeout:g} s")
                return self._decide(claim, cut_off, since=started)
            log.exception("a handler crashed", extra={"error_class": type(error).__name__})
            return self._decide(claim, Crash(f"{type(error).__name__}: {error}"), since=started)
        finally:
            self._metrics.processing.observe(loop.time() - started)
        await self._gate.served()
        return succeeded(receipt.result if receipt else None)

    def _span(self, claim: Claim) -> AbstractContextManager[None]:
        attributes: tracing.Attributes = {"messaging.message.id": str(claim.id), "taskflux.attempt": claim.attempt}
        return tracing.process_span(self._handler.type, claim.traceparent, attributes)

    def _invoke(self, task: Task[Any]) -> Awaitable[Receipt | None]:
        if self._handler.provider is None:
            return self._handler.function(task)
        return self._handler.function(task, self._client)

    async def _judge(self, claim: Claim, error: TaskError) -> None:
        """What the provider's circuit learns from a failure."""
        if isinstance(error, ProviderError):
            await self._gate.failed(claim.id, error)
        elif isinstance(error, Permanent):
            await self._gate.served()

    def _decide(self, claim: Claim, error: TaskError, *, since: float) -> Decision:
        self._metrics.error(error.error_class)
        attempt = Attempt(claim.attempt, claim.max_attempts, claim.handbacks, self._gate.succeeded_since(since))
        return decide(self._handler.policy, attempt, error, self._jitter())

    async def _write(self, claim: Claim, decision: Decision) -> None:
        self._running[claim.id].stage = _Stage.SETTLING
        try:
            settled = await self._settle.submit(Settlement(claim.id, claim.version, decision))
        except StoreError as error:
            log.error("an outcome could not be written", extra={"error": str(error)})
            return
        self._metrics.settled(decision, settled)
        level = logging.WARNING if decision.event in (Event.DIED, Event.HELD) else logging.INFO
        log.log(
            level,
            decision.event.value,
            extra={"type": self._handler.type, "attempt": claim.attempt, "error_class": decision.error_class},
        )


class _Metrics:
    """The labelled children that every attempt touches, looked up once."""

    def __init__(self, task_type: str) -> None:
        self._type = task_type
        self.in_flight = metrics.IN_FLIGHT.labels(task_type)
        self.processing = metrics.PROCESSING.labels(task_type)
        self._end_to_end = metrics.END_TO_END.labels(task_type)
        self._outcomes = {event: metrics.ATTEMPTS.labels(task_type, event.value) for event in SETTLES}

    def error(self, error_class: str) -> None:
        metrics.ERRORS.labels(self._type, error_class).inc()

    def settled(self, decision: Decision, settled: Settled) -> None:
        self._outcomes[decision.event].inc()
        if decision.event is Event.SUCCEEDED and settled.written:
            self._end_to_end.observe(settled.age)
        if decision.error_class == "Ambiguous" and decision.event is Event.RETRY:
            metrics.REPEATS.labels(self._type).inc()
        if settled.late or not settled.written:
            metrics.LATE_SETTLES.labels(self._type, str(settled.written).lower()).inc()


def _task(task_type: str, claim: Claim, payload: Any) -> Task[Any]:
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
