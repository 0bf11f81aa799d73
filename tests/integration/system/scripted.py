"""Task types whose every attempt does what its payload's script says, and a provider that can be made unreachable."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from taskflux import (
    Ambiguous,
    Handler,
    Misconfigured,
    Permanent,
    Receipt,
    RetryPolicy,
    Task,
    Transient,
    Unavailable,
    handler,
    provider,
)
from taskflux.tasks.errors import TaskError


class Script(BaseModel):
    """What each attempt does, in turn; the last word holds for all further ones. `secret` stands for personal data."""

    script: list[str] = ["succeed"]
    secret: str = ""


class World:
    """What the test sees and decides of the handlers that run in its own process."""

    def __init__(self) -> None:
        self.attempts: dict[UUID, list[int]] = defaultdict(list)
        self.gates: dict[UUID, asyncio.Event] = defaultdict(asyncio.Event)
        self.entered: dict[UUID, asyncio.Event] = defaultdict(asyncio.Event)
        self.away: type[Unavailable] | type[Misconfigured] | None = None
        self.mended = False
        self.checks = 0

    def effects(self, task: UUID) -> int:
        """How often the side effect of `task` was begun."""
        return len(self.attempts[task])

    async def all_entered(self, *tasks: UUID) -> None:
        """Return once all of them run."""
        async with asyncio.timeout(30):
            await asyncio.gather(*(self.entered[task].wait() for task in tasks))


WORLD = World()


class EmptySettings(BaseModel):
    """The scripted provider has no settings."""


class Outside:
    """The client of a provider that is available or not, as the test sets it."""

    async def check(self) -> None:
        WORLD.checks += 1
        if WORLD.away:
            raise WORLD.away("still unreachable")


@provider("outside", settings=EmptySettings)
@asynccontextmanager
async def outside(settings: EmptySettings) -> AsyncIterator[Outside]:
    yield Outside()


async def act(task: Task[Script]) -> Receipt:
    WORLD.attempts[task.id].append(task.attempt)
    WORLD.entered[task.id].set()
    script = task.payload.script
    word = script[min(task.attempt, len(script)) - 1]
    match word:
        case "succeed":
            return Receipt({"attempt": task.attempt})
        case "transient":
            raise Transient("try again", progress={"seen": task.attempt})
        case "permanent":
            raise Permanent("never")
        case "mended" if WORLD.mended:
            return Receipt({"attempt": task.attempt})
        case "mended":
            raise Permanent("not before somebody fixes it")
        case "ambiguous":
            raise Ambiguous("perhaps")
        case "crash":
            raise RuntimeError(f"a bug with {task.payload.secret}")
        case "wait":
            await WORLD.gates[task.id].wait()
            return Receipt({"attempt": task.attempt})
        case _:
            return misbehave(word)


def misbehave(word: str) -> Receipt:
    """What a handler should not do, but some do."""
    match word:
        case "return-text":
            return "done"  # type: ignore[return-value]
        case "return-no-json":
            return Receipt({"at": datetime.now(UTC)})
        case "return-no-mapping":
            return Receipt(5)  # type: ignore[arg-type]
        case "retry-after-text":
            raise Transient("later", retry_after="soon")  # type: ignore[arg-type]
        case "retry-after-nan":
            raise Transient("later", retry_after=float("nan"))
        case "reason-no-text":
            raise Permanent(ValueError("no text"))  # type: ignore[arg-type]
        case "own-kind-of-error":
            raise OwnKind("one that nobody foresaw")
        case _:
            raise AssertionError(f"no such word: {word}")


class OwnKind(TaskError):
    """None of the kinds that `decide` knows."""


QUICK = RetryPolicy(max_attempts=4, first_delay=0.05, max_delay=0.2)


@handler("scripted", payload=Script, retry=QUICK, concurrency=300)
async def scripted(task: Task[Script]) -> Receipt:
    return await act(task)


@handler("held", payload=Script, retry=QUICK, ambiguous="hold", timeout=0.5, concurrency=50)
async def held(task: Task[Script]) -> Receipt:
    return await act(task)


@handler("hasty", payload=Script, retry=QUICK, timeout=0.3, concurrency=50)
async def hasty(task: Task[Script]) -> Receipt:
    return await act(task)


@handler("narrow", payload=Script, retry=QUICK, concurrency=2)
async def narrow(task: Task[Script]) -> Receipt:
    return await act(task)


@handler("narrow-held", payload=Script, retry=QUICK, ambiguous="hold", concurrency=2)
async def narrow_held(task: Task[Script]) -> Receipt:
    return await act(task)


@handler("late", payload=Script, retry=QUICK, concurrency=50)
async def late(task: Task[Script]) -> Receipt:
    return await act(task)


@handler("provided", payload=Script, retry=QUICK, provider=outside, concurrency=50)
async def provided(task: Task[Script], client: Outside) -> Receipt:
    if WORLD.away:
        raise WORLD.away("it is unreachable")
    return await act(task)


RUNNING: tuple[Handler[Any], ...] = (scripted, held, hasty, narrow, narrow_held, provided)
"""Those of which a worker runs all the time."""
