from __future__ import annotations

import asyncio

import pytest

from taskflux.store.errors import RefusedData, SchemaTooOld, Stopped, StoreBusy, StoreUnavailable, until_available

PAUSES = 0.001, 0.002


class Server:
    """Fails with each of `troubles` in turn, then answers."""

    def __init__(self, *troubles: Exception) -> None:
        self.troubles = list(troubles)
        self.tries = 0

    async def ask(self) -> str:
        self.tries += 1
        if self.troubles:
            raise self.troubles.pop(0)
        return "answer"


async def test_work_is_tried_again_until_postgresql_is_available() -> None:
    server = Server(StoreUnavailable("away"), StoreBusy("deadlock"), StoreUnavailable("away"))
    said: list[str] = []
    assert await until_available(server.ask, pauses=PAUSES, on_wait=lambda error: said.append(str(error))) == "answer"
    assert server.tries == 4
    assert said == ["away", "deadlock", "away"]


@pytest.mark.parametrize("error", [RefusedData("value"), SchemaTooOld("migrate"), ValueError("bug")])
async def test_an_error_that_does_not_pass_by_itself_is_raised_at_once(error: Exception) -> None:
    server = Server(error)
    with pytest.raises(type(error)):
        await until_available(server.ask, pauses=PAUSES)
    assert server.tries == 1


async def test_the_caller_may_say_which_errors_are_retried() -> None:
    assert await until_available(Server(SchemaTooOld("migrate")).ask, retry=(SchemaTooOld,), pauses=PAUSES) == "answer"


async def test_when_the_time_is_up_the_last_error_is_raised() -> None:
    server = Server(*[StoreUnavailable(str(n)) for n in range(10_000)])
    with pytest.raises(StoreUnavailable):
        await until_available(server.ask, seconds=0.02, pauses=PAUSES)
    assert 1 < server.tries < 10_000
    server.tries = 0
    with pytest.raises(StoreUnavailable):
        await until_available(server.ask, seconds=0.0)
    assert server.tries == 1


async def test_a_stop_ends_the_waiting() -> None:
    server, stop = Server(StoreUnavailable("away")), asyncio.Event()
    async with asyncio.timeout(5):
        with pytest.raises(Stopped):
            await until_available(server.ask, stop=stop, pauses=(60, 60), on_wait=lambda error: stop.set())
    assert server.tries == 1


async def test_nothing_is_tried_after_a_stop() -> None:
    server, stop = Server(), asyncio.Event()
    stop.set()
    with pytest.raises(Stopped):
        await until_available(server.ask, stop=stop)
    assert server.tries == 0
