"""Celery on Redis: a task is acknowledged after its result is stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery

from benchmarks.peers import work

app = Celery("bench", broker=work.REDIS, backend=work.REDIS)
app.conf.update(task_default_queue=work.QUEUE, task_acks_late=True, worker_prefetch_multiplier=16, result_expires=3600)


@app.task(name="noop")
def noop(payload: dict[str, Any]) -> None:
    """Nothing."""


@app.task(name="nap")
def nap(payload: dict[str, Any]) -> None:
    """Wait, as for a provider's answer."""
    time.sleep(work.NAP)


@app.task(name="stamp")
def stamp(payload: dict[str, Any]) -> None:
    """Report the start."""
    work.stamp(payload)


@asynccontextmanager
async def submitting() -> AsyncIterator[Any]:
    """Sends in a thread: the client blocks."""

    async def submit(kind: str, payload: dict[str, Any]) -> None:
        await asyncio.to_thread(app.send_task, kind, [payload])

    yield submit
