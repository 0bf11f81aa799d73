"""Dramatiq on Redis: a message is acknowledged after its result is stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers import work

broker = RedisBroker(url=work.REDIS)
broker.add_middleware(Results(backend=RedisBackend(url=work.REDIS), store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=work.QUEUE)
def noop(payload: dict[str, Any]) -> None:
    """Nothing."""


@dramatiq.actor(queue_name=work.QUEUE)
def nap(payload: dict[str, Any]) -> None:
    """Wait, as for a provider's answer."""
    time.sleep(work.NAP)


@dramatiq.actor(queue_name=work.QUEUE)
def stamp(payload: dict[str, Any]) -> None:
    """Report the start."""
    work.stamp(payload)


@asynccontextmanager
async def submitting() -> AsyncIterator[Any]:
    """Sends in a thread: the client blocks."""
    actors = {actor.actor_name: actor for actor in (noop, nap, stamp)}

    async def submit(kind: str, payload: dict[str, Any]) -> None:
        await asyncio.to_thread(actors[kind].send, payload)

    yield submit
