"""Faults of a custom handler that its process and the other tasks survive."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from taskflux.local.processes import Process as Child
from taskflux.local.processes import run
from tests.integration.system.stack import TASKFLUX, Stack, eventually

pytestmark = pytest.mark.slow

MODULE = """
import asyncio
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import BaseModel

from taskflux import Receipt, RetryPolicy, Task, handler, provider


class Unruly(BaseModel):
    how: str
    entered: str = ""
    until: str = ""


async def leave(error: BaseException) -> None:
    raise error


@handler("unruly", payload=Unruly, retry=RetryPolicy(max_attempts=1), timeout=60, concurrency=50)
async def unruly(task: Task[Unruly]) -> Receipt:
    payload = task.payload
    if payload.entered:
        Path(payload.entered).touch()
    match payload.how:
        case "wait":
            while not Path(payload.until).exists():
                await asyncio.sleep(0.02)
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "exit in a task":
            await asyncio.create_task(leave(SystemExit(3)))
        case "exit in a group":
            async with asyncio.TaskGroup() as group:
                group.create_task(leave(KeyboardInterrupt()))
                group.create_task(asyncio.sleep(60))
        case "exit in a thread":
            await asyncio.to_thread(sys.exit, 3)
        case "exit in a task that nobody waits for":
            asyncio.create_task(leave(SystemExit(3)))
        case "exit in a callback":
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.sleep(0.05)
        case "stop the loop":
            asyncio.get_running_loop().stop()
        case "ignore":
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    pass
        case "block a thread":
            await asyncio.to_thread(time.sleep, 300)
    return Receipt({"how": payload.how})


class NoSettings(BaseModel):
    pass


@provider("exiting", settings=NoSettings)
@asynccontextmanager
async def exiting(settings: NoSettings):
    sys.exit(3)
    yield None


@handler("unconnected", payload=Unruly, provider=exiting)
async def unconnected(task: Task[Unruly], client: None) -> Receipt:
    return Receipt()
"""
CRASHES = ("exit", "interrupt", "exit in a task", "exit in a group", "exit in a thread")
LEFT_BEHIND = ("exit in a task that nobody waits for", "exit in a callback", "stop the loop")


@dataclass(frozen=True, slots=True)
class Unruly:
    """The handler's folder, in which it and the test signal each other through files."""

    stack: Stack
    folder: Path

    def spawn(self, name: str, target: str = "my_jobs:unruly") -> Child:
        return self.stack.spawn(target, name, cwd=self.folder)

    async def submit(self, how: str, **fields: Any) -> UUID:
        return await self.stack.submit("unruly", payload={"how": how, **fields})

    async def entered(self, how: str, **fields: Any) -> UUID:
        """A task that runs."""
        mark = self.folder / f"{how} entered"
        task = await self.submit(how, entered=str(mark), **fields)

        async def there() -> bool:
            return mark.exists()

        await eventually(there, f"{how} runs")
        return task


@pytest_asyncio.fixture(loop_scope="session")
async def unruly(stack: Stack, tmp_path: Path) -> AsyncIterator[Unruly]:
    (tmp_path / "my_jobs.py").write_text(MODULE)
    log = stack.directory / "unruly-topics.log"
    command: list[str | Path] = [TASKFLUX, "topics", "my_jobs:unruly", "my_jobs:unconnected"]
    await run(Child("topics", command, log=log, env=stack.environment(), cwd=tmp_path), 30.0)
    yield Unruly(stack, tmp_path)


async def test_a_task_that_wants_its_process_to_end_fails_alone_and_a_real_order_still_drains(
    stack: Stack, unruly: Unruly
) -> None:
    child = unruly.spawn("unruly")
    go = unruly.folder / "go"
    neighbour = await unruly.entered("wait", until=str(go))
    for how in CRASHES:
        document = await stack.until(await unruly.submit(how), "dead")
        assert (document["error"]["class"], document["attempts"]) == ("Crash", 1), how
    for how in LEFT_BEHIND:
        assert (await stack.until(await unruly.submit(how), "succeeded"))["attempts"] == 1, how
    assert (await stack.get(neighbour))["status"] == "running"
    child.send(signal.SIGINT)
    go.touch()
    assert (await stack.until(neighbour, "succeeded"))["attempts"] == 1
    assert await asyncio.wait_for(child.wait(), 15.0) == 0
    lines = [json.loads(line) for line in child.log.read_text().splitlines()]
    assert lines[-1]["message"] == "stopped"
    crashed = {line["error_class"] for line in lines if "crashed" in line["message"]}
    assert crashed == {"SystemExit", "KeyboardInterrupt"}
    assert [line for line in lines if line["message"].endswith("it continues")]


async def test_a_process_ends_in_time_whatever_a_handler_does_not_let_go_of(stack: Stack, unruly: Unruly) -> None:
    child = unruly.spawn("holding")
    tasks = [await unruly.entered(how) for how in ("ignore", "block a thread")]
    child.send(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), 20.0) == 0
    reasons = []
    for task in tasks:
        document = await stack.until(task, "dead")
        assert (document["error"]["class"], document["attempts"]) == ("Ambiguous", 1)
        reasons.append(document["error"]["reason"])
    said = "it was cut off when its worker ended"
    assert reasons == [f"{said}, and did not end", said]


async def test_a_provider_that_wants_the_process_to_end_as_it_connects_does_not_end_it_without_a_word(
    stack: Stack, unruly: Unruly
) -> None:
    child = unruly.spawn("unconnected", "my_jobs:unconnected")
    assert await asyncio.wait_for(child.wait(), 30.0) == 1
    (line,) = [json.loads(line) for line in child.log.read_text().splitlines() if "fails" in line]
    assert (line["level"], line["error_class"]) == ("CRITICAL", "SystemExit")
    assert line["raised_at"].startswith("my_jobs.py")
