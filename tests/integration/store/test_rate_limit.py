"""A provider's rate, counted in Redis for all processes together."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from uuid_utils.compat import uuid7

from taskflux.local.servers import ValkeyServer
from taskflux.store.accelerator import Accelerator
from taskflux.store.settings import RedisSettings


@pytest_asyncio.fixture
async def processes(valkey: ValkeyServer) -> AsyncIterator[list[Accelerator]]:
    """Two that share one Redis."""
    processes = [Accelerator(RedisSettings.model_validate({"url": valkey.url, "timeout": 5})) for _ in range(2)]
    for each in processes:
        await each.open()
    yield processes
    for each in processes:
        await each.close()


async def step(valkey: ValkeyServer, name: str, seconds: int) -> None:
    """Set Redis's clock by so many seconds: what it has stored moves the other way instead."""
    client = Redis.from_url(valkey.url)
    for key in await client.keys(f"taskflux:rate:{name}*"):
        await client.decrby(key, seconds * 1_000_000)
    await client.aclose()


async def test_all_processes_together_keep_to_the_rate(processes: list[Accelerator]) -> None:
    name = str(uuid7())
    waits = [await process.turn(name, 0.1, 0.0) for _ in range(2) for process in processes]
    assert waits == pytest.approx([0.0, 10.0, 20.0, 30.0], abs=2)


@pytest.mark.parametrize("seconds", [-40, -3600])
async def test_after_the_clock_was_set_back_a_turn_is_not_waited_for_any_longer(
    processes: list[Accelerator], valkey: ValkeyServer, seconds: int
) -> None:
    name = str(uuid7())
    for _ in range(3):
        await processes[0].turn(name, 0.1, 0.0)
    await step(valkey, name, seconds)
    waits = [await process.turn(name, 0.1, 0.0) for process in processes]
    assert waits == pytest.approx([30.0, 40.0], abs=2)


async def test_a_clock_that_was_set_forward_gives_turns_at_the_rate_from_there_on(
    processes: list[Accelerator], valkey: ValkeyServer
) -> None:
    name = str(uuid7())
    for _ in range(3):
        await processes[0].turn(name, 0.1, 0.0)
    await step(valkey, name, 3600)
    assert [await process.turn(name, 0.1, 0.0) for process in processes] == pytest.approx([0.0, 10.0], abs=2)
