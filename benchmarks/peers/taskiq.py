"""taskiq on a Redis stream: a message is acknowledged after its result is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers import work

broker = RedisStreamBroker(url=work.REDIS, queue_name=work.QUEUE, consumer_group_name=work.QUEUE).with_result_backend(
    RedisAsyncResultBackend(redis_url=work.REDIS, result_ex_time=3600)
)


@broker.task(task_name="noop")
async def noop(payload: dict[str, Any]) -> None:
    """Nothing."""


@broker.task(task_name="nap")
async def nap(payload: dict[str, Any]) -> None:
    """Wait, as for a provider's answer."""
    await asyncio.sleep(work.NAP)


@broker.task(task_name="stamp")
async def stamp(payload: dict[str, Any]) -> None:
    """Report the start."""
    work.stamp(payload)


@asynccontextmanager
async def submitting() -> AsyncIterator[Any]:
    """One pool."""
    tasks: dict[str, Any] = {"noop": noop, "nap": nap, "stamp": stamp}

    async def submit(kind: str, payload: dict[str, Any]) -> None:
        await tasks[kind].kiq(payload)

    await broker.startup()
    try:
        yield submit
    finally:
        await broker.shutdown()
