"""Waiting for a condition, with a bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import Record
from taskflux.stream.positions import Positions

PATIENCE = 60.0
"""Seconds after which a wait has failed: far above what any of them takes."""


async def eventually(condition: Callable[[], Awaitable[Any]], what: str = "it", patience: float = PATIENCE) -> Any:
    """The first true answer of `condition`; AssertionError after `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if answer := await condition():
            return answer
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {patience} s: {what}")


async def take(consumer: Consumer, count: int, timeout: float = PATIENCE) -> list[Record]:
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
