"""PostgreSQL, Kafka and Redis unreachable (guarantees 1 and 2)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from uuid import UUID

import httpx
import pytest

from taskflux.handlers import relay
from tests.integration.system.fragile import Fragile
from tests.integration.system.scripted import World, late
from tests.integration.system.stack import Stack, eventually


@pytest.mark.parametrize("how", [pytest.param("stopped", marks=pytest.mark.slow), "killed"])
async def test_while_postgres_is_unreachable_ingest_answers_503_and_no_accepted_task_is_lost_or_repeated(
    fragile: Fragile, world: World, how: str
) -> None:
    stack = fragile.stack
    await stack.until(await stack.submit("scripted"), "succeeded")
    running = await stack.submit_many("scripted", 20, ["wait"])
    await world.all_entered(*running)
    load = Load(stack)
    submitters = [asyncio.create_task(load.run()) for _ in range(5)]
    await eventually(load.reached(202, 50), "50 are accepted")
    if how == "stopped":
        await fragile.postgres.stop()
    else:
        fragile.postgres.kill()
    for task in running:  # they end while no process can store their outcomes
        world.gates[task].set()
    # The five get an answer every two seconds: ten of them is longer than a lease.
    await eventually(load.reached(503, 10 if how == "stopped" else 5), "ingest says that it cannot take any")
    await fragile.postgres.start()
    await eventually(load.reached(202, load.answers[202] + 50), "50 more are accepted")
    load.stop = True
    await asyncio.gather(*submitters)
    assert set(load.answers) == {202, 503}
    for row in await stack.until_all([*running, *load.accepted], "succeeded"):
        assert row["attempts"] == world.effects(row["id"]) == 1


async def test_statements_beyond_their_timeout_end_no_process(
    fragile: Fragile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, relay.log.name)
    stack = fragile.stack
    tasks = [await stack.submit(name, delaySeconds=0.3) for name in ("scripted", "late")]
    async with stack.sql.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE tasks IN EXCLUSIVE MODE")

        async def given_up() -> bool:
            return any("the relay waits" in record.message for record in caplog.records)

        await eventually(given_up, "the relay stops waiting to publish")
    await stack.until(tasks[0], "succeeded")
    await stack.until(tasks[1], "queued")


async def test_while_kafka_is_unreachable_ingest_accepts_and_all_tasks_end_after_it_returns_without_its_log(
    fragile: Fragile, world: World
) -> None:
    stack = fragile.stack
    queued = await stack.submit_many("late", 20)
    await stack.until_all(queued, "queued")
    running = await stack.submit_many("scripted", 20, ["wait"])
    await world.all_entered(*running)
    fragile.broker.kill()
    meanwhile = [await stack.submit(name) for name in ("scripted", "late") * 10]
    for task in running:  # what runs has no need of Kafka
        world.gates[task].set()
    for row in await stack.until_all(running, "succeeded"):
        assert row["attempts"] == 1
    await fragile.broker_is_back()
    await stack.start(late)
    for row in await stack.until_all([*queued, *running, *meanwhile], "succeeded"):
        assert row["attempts"] == world.effects(row["id"]) == 1
    await stack.stop("late")


async def test_without_redis_everything_works(fragile: Fragile, world: World) -> None:
    stack = fragile.stack
    before = await stack.submit("scripted")
    await stack.until(before, "succeeded")
    fragile.valkey.kill()
    task = await stack.submit("scripted")
    await stack.until(task, "succeeded")
    assert (await stack.get(before))["status"] == "succeeded"
    await fragile.valkey.start()


class Load:
    """Submits until told to stop, counts what it is answered, and keeps what was accepted."""

    def __init__(self, stack: Stack) -> None:
        self._client = stack.client
        self.stop = False
        self.accepted: list[UUID] = []
        self.answers: Counter[int] = Counter()

    async def run(self) -> None:
        while not self.stop:
            answer = await self._client.post("/tasks", json={"taskType": "scripted", "payload": {}})
            self._take(answer)
            # Bounded: while it is unreachable, an answer takes as long as ingest waits for it.
            await asyncio.sleep(0.01)

    def _take(self, answer: httpx.Response) -> None:
        self.answers[answer.status_code] += 1
        if answer.status_code == 202:
            self.accepted.append(UUID(answer.json()["taskId"]))
        elif answer.status_code == 503:
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["content-type"] == "application/problem+json"

    def reached(self, status: int, number: int) -> Callable[[], Awaitable[bool]]:
        """Whether so many had that answer."""

        async def reached() -> bool:
            return self.answers[status] >= number

        return reached
