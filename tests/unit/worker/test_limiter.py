from __future__ import annotations

import asyncio

import pytest

from taskflux.store.accelerator import Accelerator
from taskflux.store.settings import RedisSettings
from taskflux.worker.circuits import Limiter


async def told(rate: float, turns: int) -> list[float]:
    """The waits that this many turns at one moment are told."""
    limiter = Limiter("billing", rate, Accelerator(RedisSettings()))
    return await asyncio.gather(*[limiter.take() for _ in range(turns)])


async def test_a_slow_limit_gives_one_turn_at_a_time() -> None:
    assert await told(5.0, 4) == pytest.approx([0.0, 0.2, 0.4, 0.6], abs=0.05)


async def test_a_fast_limit_gives_a_tenth_of_a_second_at_once() -> None:
    waits = await told(500.0, 100)
    assert waits[:50] == [0.0] * 50
    assert waits[-1] == pytest.approx(0.1, abs=0.05)


async def test_a_limit_below_one_a_second_holds_too() -> None:
    assert await told(0.1, 3) == pytest.approx([0.0, 10.0, 20.0], abs=0.5)
