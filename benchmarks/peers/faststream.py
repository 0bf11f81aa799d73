"""FastStream on Kafka: no outcome is stored, and offsets are committed by time, which is its default."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final

from faststream import FastStream
from faststream.kafka import KafkaBroker

from benchmarks.peers import work

EVERY: Final = 100
"""A task in so many is reported: there is no outcome to look for."""
TOPIC: Final = "bench-peers-{}"

broker = KafkaBroker(work.KAFKA)
app = FastStream(broker)
_done = count(1)


def _ended() -> None:
    number = next(_done)
    if number % EVERY == 0:
        work.report(number)


@broker.subscriber(TOPIC.format("noop"), group_id=work.QUEUE, auto_offset_reset="earliest")
async def noop(payload: dict[str, Any]) -> None:
    """Nothing."""
    _ended()


@broker.subscriber(
    TOPIC.format("nap"), group_id=f"{work.QUEUE}-nap", auto_offset_reset="earliest", max_workers=work.AT_ONCE
)
async def nap(payload: dict[str, Any]) -> None:
    """Wait, as for a provider's answer."""
    await asyncio.sleep(work.NAP)
    _ended()


@broker.subscriber(TOPIC.format("stamp"), group_id=f"{work.QUEUE}-stamp", auto_offset_reset="earliest")
async def stamp(payload: dict[str, Any]) -> None:
    """Report the start."""
    work.stamp(payload)


@asynccontextmanager
async def submitting() -> AsyncIterator[Any]:
    """One producer, which waits for all replicas."""
    async with KafkaBroker(work.KAFKA, acks="all", enable_idempotence=True) as producing:

        async def submit(kind: str, payload: dict[str, Any]) -> None:
            await producing.publish(payload, TOPIC.format(kind))

        yield submit
