"""Workers that are killed and halted in mid-task: started once, early, and checked by several tests.

It takes as long as a lease and a join of the embedded broker, so it goes on beside the other tests.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from taskflux.local.processes import Process as Child
from tests.integration.system.frail import Traces
from tests.integration.system.stack import Stack, eventually

ROOT = Path(__file__).parents[3]
MODULE = "tests.integration.system.frail"


@dataclass(frozen=True, slots=True)
class Catastrophe:
    """`repeated`, `once` and `held` were cut by kill -9, the first two are run again by another worker; `mid_call` and
    `waiting` belong to the worker `zombie`, which was halted (SIGSTOP)."""

    traces: Traces
    repeated: UUID
    once: UUID
    held: UUID
    mid_call: UUID
    waiting: UUID
    zombie: Child


async def happen(stack: Stack) -> Catastrophe:
    """Start workers, give them something to do, and kill or halt them in the middle of it."""
    directory = stack.directory / "traces"
    directory.mkdir()
    traces = Traces(directory)

    def worker(handler: str, name: str) -> Child:
        return stack.spawn(f"{MODULE}:{handler}", name, cwd=ROOT, FRAIL_TRACES=str(directory))

    doomed, doomed_held, zombie = worker("frail", "frail-1"), worker("frail_held", "held"), worker("zombie", "zombie")
    repeated = await stack.submit("frail", ["hang", "succeed"])
    once = await stack.submit("frail", ["hang", "succeed"], maxAttempts=1)
    held = await stack.submit("frail-held", ["hang", "succeed"])
    mid_call = await stack.submit("zombie", ["hang", "succeed"])
    await asyncio.gather(*(begun(traces, task) for task in (repeated, once, held, mid_call)))
    waiting = await stack.submit("zombie")
    await stack.until(waiting, "running")
    doomed.kill()
    doomed_held.kill()
    zombie.send(signal.SIGSTOP)
    worker("frail", "frail-2")
    return Catastrophe(traces, repeated, once, held, mid_call, waiting, zombie)


async def begun(traces: Traces, task: UUID) -> None:
    """Return once an attempt at `task` has begun."""

    async def seen() -> bool:
        return bool(traces.attempts(task))

    await eventually(seen, f"{task} begins")
