"""Waiting for a condition, with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import Record
from taskflux.stream.positions import Positions


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


async def committed(positions: Positions, group: str, topic: str) -> dict[int, int | None]:
    """Partition → the group's commit, None for none; empty where the topic does not exist."""
    found = await positions.read(group, topic)
    return {} if found is None else {number: at.committed for number, at in found.partitions.items()}


async def log_starts(positions: Positions, topic: str) -> dict[int, int]:
    """Partition → offset of its first record; empty where the topic does not exist."""
    found = await positions.read("nobody", topic)
    return {} if found is None else {number: at.start for number, at in found.partitions.items()}


async def log_ends(positions: Positions, topic: str) -> dict[int, int]:
    """Partition → offset after its last record; empty where the topic does not exist."""
    found = await positions.read("nobody", topic)
    return {} if found is None else {number: at.end for number, at in found.partitions.items()}
