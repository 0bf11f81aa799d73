"""Publishing when the process that should do it was lost, and when several do it at once (guarantees 1 and 2)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import httpx
from uuid_utils.compat import uuid7

from taskflux.local.ports import free_port
from taskflux.local.processes import Process as Child
from taskflux.store.publishing import SQL
from taskflux.store.tasks import Tasks
from taskflux.tasks.model import Submission
from tests.integration.system.scripted import World
from tests.integration.system.stack import GRACE, Stack, eventually
from tests.keys import HEADERS


async def test_a_pending_publish_of_a_lost_process_is_published_after_its_grace(stack: Stack, world: World) -> None:
    # What ingest, and what a relay, stores before it sends to Kafka; then the process is lost.
    by_ingest = Submission(uuid7(), "scripted", "{}", max_attempts=4)
    by_relay = Submission(uuid7(), "scripted", "{}", max_attempts=4)
    await Tasks(stack.database).insert([by_ingest], GRACE)
    await Tasks(stack.database).insert([by_relay], 60.0)
    async with stack.sql.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE due SET publish_at = now() WHERE task_id = $1", by_relay.id)
        batch = {"ids": [by_relay.id], "versions": [1], "least": by_relay.id, "greatest": by_relay.id, "grace": 1.0}
        take = SQL["take_due"]
        (taken,) = await connection.fetch(take.text, *[batch[name] for name in take.parameters])
        assert taken["id"] == by_relay.id
    for row in await stack.until_all([by_ingest.id, by_relay.id], "succeeded"):
        assert row["attempts"] == world.effects(row["id"]) == 1


async def test_ingest_and_a_relay_that_are_killed_in_a_burst_lose_nothing_and_repeat_nothing(
    stack: Stack, world: World
) -> None:
    port = free_port()
    ingest, relay = stack.spawn("ingest", "ingest-2", TASKFLUX_HTTP__PORT=str(port)), stack.spawn("relay", "relay-2")
    await stack.start("relay", "relay-3")  # three in all
    accepted: list[UUID] = []
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False, headers=HEADERS
    ) as client:
        await _ready(client, relay)
        submitters = [asyncio.create_task(_submit_until_refused(client, accepted)) for _ in range(20)]
        await eventually(_reached(accepted, 300), "300 are accepted")
        ingest.kill()
        relay.kill()
        await asyncio.gather(*submitters)
    # Those, too, whose answer was lost with ingest.
    marked = await stack.sql.fetch("""SELECT id FROM tasks WHERE metadata LIKE '%"burst"%'""")
    assert {row["id"] for row in marked} >= set(accepted)
    for row in await stack.until_all([row["id"] for row in marked], "succeeded"):
        assert row["attempts"] == world.effects(row["id"]) == 1
    await stack.stop("relay-3")


async def _submit_until_refused(client: httpx.AsyncClient, accepted: list[UUID]) -> None:
    """Every second one is due a little later, and so is the relays' to publish."""
    document = {"taskType": "scripted", "payload": {}, "metadata": {"of": "burst"}}
    for number in range(10_000):
        try:
            answer = await client.post("/tasks", json=document | {"delaySeconds": 0.3 * (number % 2)})
        except httpx.TransportError:
            return
        assert answer.status_code == 202, answer.text
        accepted.append(UUID(answer.json()["taskId"]))


async def _ready(client: httpx.AsyncClient, relay: Child) -> None:
    async def ready() -> bool:
        try:
            return (await client.get("/readyz")).status_code == 200 and "started" in relay.last_words()
        except httpx.TransportError:
            return False

    await eventually(ready, "both have started")


def _reached(accepted: list[UUID], number: int) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        return len(accepted) >= number

    return reached
