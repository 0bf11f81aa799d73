"""Waiting for a condition, with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import Record


async def eventually(condition: Callable[[], Awaitable[bool]], timeout: float = 10.0) -> None:
    """Returns once `condition` holds; TimeoutError after `timeout` seconds."""
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110  # what Kafka does sets no event of ours
            await asyncio.sleep(0.02)


async def take(consumer: Consumer, count: int, timeout: float = 20.0) -> list[Record]:
    """The next `count` records; TimeoutError after `timeout` seconds."""
    records: list[Record] = []
    async with asyncio.timeout(timeout):
        while len(records) < count:
            records += await consumer.fetch(count - len(records), 1.0)
    return records
