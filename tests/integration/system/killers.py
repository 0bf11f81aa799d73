"""A task that kills every worker that runs it, among others that do not: started once, early, and checked by its tests.

It takes a lease, a restart and a join of the group for each worker that is killed: it goes on beside the other tests.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from taskflux.local.processes import Process as Child
from tests.integration.system.frail import Traces
from tests.integration.system.stack import Row, Stack

ROOT = Path(__file__).parents[3]
INNOCENTS = 20
PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of them, after how many workers and seconds."""

    killer: Row
    innocents: list[Row]
    kills: int
    seconds: float


class Supervised:
    """Worker processes of one handler, each started again as soon as it has died."""

    def __init__(self, stack: Stack, handler: str, number: int, traces: Path) -> None:
        self.kills = 0
        names = [f"{handler}-{place}" for place in range(number)]
        self._workers = [
            stack.spawn(f"tests.integration.system.frail:{handler}", name, cwd=ROOT, FRAIL_TRACES=str(traces))
            for name in names
        ]
        self._keepers = [asyncio.create_task(self._keep(worker)) for worker in self._workers]

    async def _keep(self, worker: Child) -> None:
        while True:
            assert await worker.wait() == 70, "it ended by something else than the killer"
            self.kills += 1
            worker.spawn()

    async def stop(self) -> None:
        """End them all; what a worker ended by, unless it was the killer, is raised."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.wait(self._keepers)
        for worker in self._workers:
            worker.kill()
        for keeper in self._keepers:
            if not keeper.cancelled():
                keeper.result()


async def happen(stack: Stack) -> dict[int, Outcome]:
    """One killer among other tasks for one worker, and the same for three, in parallel; by number of workers."""
    one, three = await asyncio.gather(_run(stack, "killers_one", 1), _run(stack, "killers_three", 3))
    return {1: one, 3: three}


async def _run(stack: Stack, handler: str, number: int) -> Outcome:
    traces = stack.directory / handler
    traces.mkdir()
    began = time.monotonic()
    documents = [_document(handler, "kill"), *[_document(handler, "take-time")] * INNOCENTS]
    answer = await stack.client.post("/tasks/batch", json=documents)
    assert answer.status_code == 202, answer.text
    killer, *innocents = [UUID(each["taskId"]) for each in answer.json()]
    supervised = Supervised(stack, handler, number, traces)
    try:
        await stack.until_all([killer, *innocents], "succeeded", "dead", patience=PATIENCE)
    finally:
        await supervised.stop()
    (dead,) = await stack.rows([killer])
    assert len(Traces(traces).attempts(killer)) == supervised.kills
    return Outcome(dead, await stack.rows(innocents), supervised.kills, time.monotonic() - began)


def _document(handler: str, word: str) -> dict[str, object]:
    return {"taskType": handler.replace("_", "-"), "payload": {"script": [word]}, "maxAttempts": 3}
