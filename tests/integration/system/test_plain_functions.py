"""Plain functions as handlers of a worker that is a process of its own: they block threads, and its lease goes on."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from taskflux.local.ports import free_port
from taskflux.local.processes import Process as Child
from taskflux.local.processes import run
from tests.integration.system.stack import LEASE, TASKFLUX, Stack, eventually, total

pytestmark = pytest.mark.slow

MODULE = """
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from taskflux import Receipt, RetryPolicy, Task, handler


class Job(BaseModel):
    entered: str
    until: str = ""
    seconds: float = 0.0
    then: str = ""


def work(task: Task[Job]) -> Receipt:
    job = task.payload
    Path(job.entered).touch()
    time.sleep(job.seconds)
    while job.until and not Path(job.until).exists():
        time.sleep(0.02)
    if job.then == "exit":
        sys.exit(3)
    return Receipt({"attempt": task.attempt})


ONCE = RetryPolicy(max_attempts=1)


@handler("plain", payload=Job, retry=ONCE, timeout=60, concurrency=4)
def plain(task: Task[Job]) -> Receipt:
    return work(task)


@handler("plain-short", payload=Job, retry=ONCE, timeout=1.5, concurrency=2)
def plain_short(task: Task[Job]) -> Receipt:
    return work(task)


@handler("plain-held", payload=Job, timeout=1.5, concurrency=2, ambiguous="hold")
def plain_held(task: Task[Job]) -> Receipt:
    return work(task)
"""


@dataclass
class Plain:
    """The handlers' folder, in which they and the test signal each other through files."""

    stack: Stack
    folder: Path
    port: int
    tasks: int = 0

    async def spawn(self, name: str) -> Child:
        """A worker that has started."""
        target = f"my_plain:{name}"
        child = self.stack.spawn(target, f"{name}-{self.port}", cwd=self.folder, TASKFLUX_HTTP__PORT=str(self.port))

        async def started() -> bool:
            try:
                return (await self.readyz()).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(started, f"{name} starts")
        return child

    async def submit(self, task_type: str, **payload: Any) -> tuple[UUID, Path]:
        """A task, and the file that its function makes when it is called."""
        self.tasks += 1
        mark = self.folder / f"entered-{self.tasks}"
        return await self.stack.submit(task_type, payload={"entered": str(mark), **payload}), mark

    async def entered(self, task_type: str, **payload: Any) -> UUID:
        """A task whose function was called."""
        task, mark = await self.submit(task_type, **payload)

        async def there() -> bool:
            return mark.exists()

        await eventually(there, f"a task of {task_type} runs")
        return task

    async def readyz(self) -> httpx.Response:
        return await self.stack.client.get(f"http://127.0.0.1:{self.port}/readyz")

    async def stuck(self) -> float:
        answer = await self.stack.client.get(f"http://127.0.0.1:{self.port}/metrics")
        return total(answer.text, "taskflux_stuck_threads", {})


def logged(child: Child) -> list[dict[str, Any]]:
    return [json.loads(line) for line in child.log.read_text().splitlines()]


@pytest_asyncio.fixture(loop_scope="session")
async def plain(stack: Stack, tmp_path: Path) -> AsyncIterator[Plain]:
    (tmp_path / "my_plain.py").write_text(MODULE)
    targets = [f"my_plain:{name}" for name in ("plain", "plain_short", "plain_held")]
    log = stack.directory / "plain-topics.log"
    await run(Child("topics", [TASKFLUX, "topics", *targets], log=log, env=stack.environment(), cwd=tmp_path), 30.0)
    yield Plain(stack, tmp_path, free_port())


async def test_a_worker_keeps_its_lease_while_its_functions_block_for_longer_than_one(
    stack: Stack, plain: Plain
) -> None:
    child = await plain.spawn("plain")
    tasks = [await plain.entered("plain", seconds=2 * LEASE) for _ in range(3)]
    crash = await plain.entered("plain", then="exit")
    for task in tasks:
        document = await stack.until(task, "succeeded")
        assert (document["attempts"], document["result"]) == (1, {"attempt": 1})
    document = await stack.until(crash, "dead")
    assert (document["error"]["class"], document["error"]["reason"]) == ("Crash", "SystemExit: 3")
    assert not [line for line in logged(child) if "the lease" in line["message"]]
    child.send(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), 20) == 0


async def test_a_worker_whose_threads_are_all_stuck_takes_no_records_says_so_and_recovers(
    stack: Stack, plain: Plain
) -> None:
    child = await plain.spawn("plain_short")
    go = plain.folder / "go"
    stuck = [await plain.entered("plain-short", until=str(go)) for _ in range(2)]
    for task in stuck:
        document = await stack.until(task, "dead")
        assert (document["error"]["class"], document["attempts"]) == ("Ambiguous", 1)
        assert document["error"]["reason"] == "its thread had not returned after 1.5 s"
    before = await stack.rows(stuck)

    # It takes no records, and says so; the lease and the membership go on.
    assert await plain.stuck() == 2
    answer = await plain.readyz()
    assert (answer.status_code, answer.text) == (503, "all threads of the handler are stuck: it takes no tasks")
    waiting, mark = await plain.submit("plain-short")
    await stack.until(waiting, "queued")
    await asyncio.sleep(LEASE + 1)
    assert ((await stack.get(waiting))["attempts"], mark.exists()) == (0, False)
    assert await stack.lag("plain-short") == 1
    row = await stack.sql.fetchrow("SELECT * FROM workers WHERE type = 'plain-short'")
    assert row is not None
    assert not row["lost"]
    told = [line["message"] for line in logged(child)]
    assert told.count("a thread is stuck: its attempt is over, and it keeps its slot until it returns") == 2
    assert told.count("all threads are stuck: the worker takes no tasks until one returns") == 1

    # It recovers, and late results of the threads are ignored.
    go.touch()
    document = await stack.until(waiting, "succeeded")
    assert document["attempts"] == 1
    assert await stack.rows(stuck) == before

    async def free() -> bool:
        return await plain.stuck() == 0 and (await plain.readyz()).status_code == 200

    await eventually(free, "the threads return")
    told = [line["message"] for line in logged(child)]
    assert "the worker takes tasks again" in told
    assert not [line for line in told if "joining again" in line or "lease has ended" in line]
    child.send(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), 20) == 0


async def test_a_process_ends_in_time_although_threads_are_stuck_or_run(stack: Stack, plain: Plain) -> None:
    child = await plain.spawn("plain_held")
    never = str(plain.folder / "never")
    stuck = await plain.entered("plain-held", until=never)
    document = await stack.until(stuck, "uncertain")
    assert (document["error"]["class"], document["attempts"]) == ("Ambiguous", 1)
    runs = await plain.entered("plain-held", until=never)
    child.send(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), 20) == 0
    document = await stack.until(runs, "uncertain")
    assert (document["error"]["class"], document["attempts"]) == ("Ambiguous", 1)
    assert (await stack.get(stuck))["status"] == "uncertain"
    assert await stack.sql.fetchval("SELECT count(*) FROM claims WHERE type = 'plain-held'") == 0
    assert logged(child)[-1]["message"] == "a handler left tasks or threads that do not end: the process exits"
