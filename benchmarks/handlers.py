"""The task types that are measured: they do as little as a handler can."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from taskflux import Receipt, Task, handler

NAP: Final = 0.02
"""Seconds that the napping handler awaits."""


@handler("noop", payload=dict[str, Any])
async def noop(task: Task[dict[str, Any]]) -> None:
    """Nothing."""


@handler("nap", payload=dict[str, Any], concurrency=512)
async def nap(task: Task[dict[str, Any]]) -> None:
    """Wait, as for a provider's answer."""
    await asyncio.sleep(NAP)


@handler("stamp", payload=dict[str, Any])
async def stamp(task: Task[dict[str, Any]]) -> Receipt:
    """Note when it was started, in nanoseconds since 1970."""
    return Receipt({"startedAt": time.time_ns()})
