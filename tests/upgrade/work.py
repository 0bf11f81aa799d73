"""Handlers of the drill, which the processes of both releases run.

The drill copies this file beside its data, so it imports only what an application would. Each attempt appends one line
to the file `UPGRADE_TRACES` when it begins and another one when it ends: `<task id> <attempt> <pid> <word> <time>`.
"""

from __future__ import annotations

import asyncio
import os
import time

from pydantic import BaseModel

from taskflux import Receipt, RetryPolicy, Task, Transient, handler


class Work(BaseModel):
    """How long an attempt takes, and how many attempts fail before one succeeds."""

    seconds: float = 0.0
    failures: int = 0


QUICK = RetryPolicy(first_delay=0.5)


async def act(task: Task[Work]) -> Receipt:
    """Take the time, then fail or succeed."""
    _trace(task, "begin")
    await asyncio.sleep(task.payload.seconds)
    if task.attempt <= task.payload.failures:
        _trace(task, "fail")
        raise Transient("this failure was asked for")
    _trace(task, "end")
    return Receipt()


def _trace(task: Task[Work], word: str) -> None:
    line = f"{task.id} {task.attempt} {os.getpid()} {word} {time.time():.6f}\n"
    file = os.open(os.environ["UPGRADE_TRACES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())  # one write: whole, whoever writes beside us
    finally:
        os.close(file)


@handler("drill-held", payload=Work, retry=QUICK, ambiguous="hold", concurrency=16)
async def held(task: Task[Work]) -> Receipt:
    return await act(task)


@handler("drill-late", payload=Work, retry=QUICK, concurrency=16)
async def late(task: Task[Work]) -> Receipt:
    return await act(task)
