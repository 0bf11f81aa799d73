"""Task types for workers that are separate processes, to be killed or halted: they record their attempts in files.

An attempt appends `<attempt> <pid>` to the file `<task id>` in the directory `FRAIL_TRACES`.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from uuid import UUID

from taskflux import Receipt, Task, handler
from tests.integration.system.scripted import QUICK, Script


class Traces:
    """What such handlers did, and how to let them go on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def attempts(self, task: UUID) -> list[tuple[int, int]]:
        """(attempt, process id) of each time the side effect of `task` was begun."""
        try:
            lines = (self._directory / str(task)).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(int(attempt), int(pid)) for attempt, pid in map(str.split, lines)]

    def add(self, task: UUID, attempt: int) -> None:
        with (self._directory / str(task)).open("a") as file:
            file.write(f"{attempt} {os.getpid()}\n")

    def let_go(self, task: UUID) -> None:
        """End the hanging of `task`."""
        self._go(task).touch()

    async def hang(self, task: UUID) -> None:
        """Return once `task` is let go."""
        while not self._go(task).exists():  # noqa: ASYNC110 - another process says so
            await asyncio.sleep(0.02)

    def _go(self, task: UUID) -> Path:
        return self._directory / f"{task}.go"


async def act(task: Task[Script]) -> Receipt:
    """The script's next word, the last one for ever."""
    traces = Traces(Path(os.environ["FRAIL_TRACES"]))
    traces.add(task.id, task.attempt)
    script = task.payload.script
    match script[min(len(traces.attempts(task.id)), len(script)) - 1]:
        case "hang":
            await traces.hang(task.id)
        case "take-time":
            await asyncio.sleep(0.3)
        case "kill":
            await asyncio.sleep(0.1)  # beside the others
            os._exit(70)
    return Receipt()


@handler("frail", payload=Script, retry=QUICK)
async def frail(task: Task[Script]) -> Receipt:
    return await act(task)


@handler("frail-held", payload=Script, retry=QUICK, ambiguous="hold")
async def frail_held(task: Task[Script]) -> Receipt:
    return await act(task)


# Halted until the test comes to it, which on a busy machine is far beyond the usual time of an attempt.
@handler("zombie", payload=Script, retry=QUICK, ambiguous="hold", concurrency=1, timeout=600.0)
async def zombie(task: Task[Script]) -> Receipt:
    return await act(task)


@handler("killers-one", payload=Script, retry=QUICK, concurrency=50)
async def killers_one(task: Task[Script]) -> Receipt:
    return await act(task)


@handler("killers-three", payload=Script, retry=QUICK, concurrency=50)
async def killers_three(task: Task[Script]) -> Receipt:
    return await act(task)


HANDLERS = (frail, frail_held, zombie, killers_one, killers_three)
