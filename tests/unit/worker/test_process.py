"""A process: what it waits for while it may be told to drain."""

from __future__ import annotations

import asyncio

import pytest

from taskflux.worker.process import Process
from taskflux.worker.settings import Settings


@pytest.fixture
def process() -> Process:
    return Process("relay", Settings())


async def test_what_fails_while_it_is_waited_for_raises_its_error(process: Process) -> None:
    async def work() -> None:
        raise KeyError("a fault")

    with pytest.raises(KeyError):
        await process.wait(work())


async def test_a_drain_ends_the_wait_and_what_is_waited_for(process: Process) -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    asyncio.get_running_loop().call_soon(process.drain)
    assert await process.wait(work()) is False
    await asyncio.wait_for(ended.wait(), 10)


async def test_what_is_over_before_a_drain_is_done(process: Process) -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    assert await process.wait(work()) is True
    assert await process.wait(asyncio.sleep(60), 0.001) is False
