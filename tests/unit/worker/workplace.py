"""A worker's parts over a real store, with a handler, a clock and a draw that the test chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from pydantic import BaseModel

from taskflux import Receipt, RetryPolicy, Task, handler, provider
from taskflux.store.claims import Claim, Claims
from taskflux.store.publishing import Circuits
from taskflux.tasks.policy import AmbiguousPolicy
from taskflux.worker.circuits import CircuitWatch, Gate
from taskflux.worker.executor import PAYLOAD_BYTES, Executor
from taskflux.worker.handler import Options
from taskflux.worker.lease import Lease
from taskflux.worker.outcomes import Outcomes
from tests.integration.store.scene import TYPE, Scene
from tests.unit.world import Clock, WatchedDatabase

LEASE = 30.0
PROVIDER = "outside"
RETRY = RetryPolicy(max_attempts=3, first_delay=100.0, max_delay=1000.0)


class Payload(BaseModel):
    """What the scene's tasks carry."""

    to: str


class NoSettings(BaseModel):
    pass


@provider(PROVIDER, settings=NoSettings)
@asynccontextmanager
async def outside(settings: NoSettings) -> Any:
    yield None


Work = Callable[[Task[Payload]], Awaitable[Receipt | None]]
PlainWork = Callable[[Task[Payload]], Receipt | None]


@dataclass
class Workplace:
    """One worker that has beaten once; `work` is what its handler does."""

    scene: Scene
    clock: Clock
    claims: Claims
    lease: Lease
    watch: CircuitWatch
    gate: Gate
    executor: Executor

    @classmethod
    async def of(
        cls,
        scene: Scene,
        work: Work | None = None,
        *,
        plain: PlainWork | None = None,
        ambiguous: AmbiguousPolicy = "resend",
        timeout: float = 60.0,
        concurrency: int = 10,
        client: object | None = None,
        jitter: Callable[[], float] = lambda: 0.5,
        payload: Any = Payload,
        patience: float = 60.0,
        payload_bytes: int = PAYLOAD_BYTES,
    ) -> Workplace:
        async def run(task: Task[Payload]) -> Receipt | None:
            assert work is not None
            return await work(task)

        async def run_with_client(task: Task[Payload], client: object) -> Receipt | None:
            return await run(task)

        def run_plainly(task: Task[Payload]) -> Receipt | None:
            assert plain is not None
            return plain(task)

        policy = Options(retry=RETRY, ambiguous=ambiguous, timeout=timeout)
        if client is None:
            declared = handler(TYPE, payload=payload, **policy)(run if plain is None else run_plainly)
        else:
            declared = handler(TYPE, payload=payload, provider=outside, **policy)(run_with_client)
        await scene.register(TYPE, ambiguous, None if client is None else PROVIDER)
        clock = Clock()
        claims = await scene.worker()
        lease = Lease(claims, LEASE, clock)
        await lease.renew(0)
        watch = CircuitWatch(Circuits(scene.database), clock)
        gate = Gate(watch, None if client is None else PROVIDER, client, clock=clock)
        executor = Executor(
            declared,
            gate,
            lease,
            Outcomes(claims),
            concurrency,
            jitter=jitter,
            clock=clock,
            patience=patience,
            payload_bytes=payload_bytes,
        )
        return cls(scene, clock, claims, lease, watch, gate, executor)

    @property
    def database(self) -> WatchedDatabase:
        return cast("WatchedDatabase", self.scene.database)

    async def claim(self, count: int = 1, **changes: Any) -> list[Claim]:
        """Tasks that this worker has claimed."""
        return await self.scene.running(self.claims, count, **changes)

    def begin(
        self, *claims: Claim, probe: bool = False, term: int | None = None, turn: asyncio.Event | None = None
    ) -> None:
        """Let these run."""
        for claim in claims:
            self.executor.start(claim, self.lease.term if term is None else term, turn=turn, probe=probe)

    async def settled(self) -> None:
        """Return once all that was begun is settled."""
        async with asyncio.timeout(20):
            await self.executor.wait_until_settled()

    async def run_one(self, *, probe: bool = False, **changes: Any) -> UUID:
        """One task from its claim to its settlement; its id."""
        (claim,) = await self.claim(**changes)
        self.begin(claim, probe=probe)
        await self.settled()
        return claim.id
