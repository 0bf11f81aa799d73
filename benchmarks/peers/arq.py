"""arq on Redis: a job leaves the queue together with its result being stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.peers import work


async def noop(context: dict[Any, Any], payload: dict[str, Any]) -> None:
    """Nothing."""


async def nap(context: dict[Any, Any], payload: dict[str, Any]) -> None:
    """Wait, as for a provider's answer."""
    await asyncio.sleep(work.NAP)


async def stamp(context: dict[Any, Any], payload: dict[str, Any]) -> None:
    """Report the start."""
    work.stamp(payload)


class WorkerSettings:
    """What `arq` runs."""

    functions = (noop, nap, stamp)
    redis_settings = RedisSettings.from_dsn(work.REDIS)
    queue_name = work.QUEUE
    max_jobs = work.AT_ONCE
    poll_delay = 0.02  # its default of half a second would be most of the latency


@asynccontextmanager
async def submitting() -> AsyncIterator[Any]:
    """One pool."""
    pool = await create_pool(WorkerSettings.redis_settings, default_queue_name=work.QUEUE)

    async def submit(kind: str, payload: dict[str, Any]) -> None:
        await pool.enqueue_job(kind, payload)

    try:
        yield submit
    finally:
        await pool.aclose()
