"""A provider that is unreachable, or that refuses our credentials (guarantee 5)."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from taskflux import Misconfigured, Unavailable
from tests.integration.stream.patience import log_ends
from tests.integration.system.scripted import World
from tests.integration.system.stack import PATIENCE, Stack, eventually


@pytest.mark.parametrize("away", [Unavailable, Misconfigured])
async def test_a_providers_outage_spends_no_attempts_and_fills_neither_kafka_nor_the_dead_letters(
    stack: Stack, world: World, away: type[Unavailable] | type[Misconfigured]
) -> None:
    world.away = away
    tasks = await stack.submit_many("provided", 20)
    await _circuit(stack, is_open=True)
    await _probed(world)  # a second has passed: every process knows
    await _handed_back(stack, tasks)

    # While it is open, nothing is published but probes.
    before = await log_ends(stack.positions, stack.topic("provided"))
    tasks += await stack.submit_many("provided", 20)
    expires_at = datetime.now(UTC) + timedelta(seconds=0.5)
    expiring = await stack.submit("provided", expiresAt=expires_at.isoformat())
    assert (await stack.until(expiring, "dead"))["error"]["class"] == "Expired"
    await _handed_back(stack, tasks)
    await _probed(world)
    published = await _published_since(stack, before)
    assert published
    assert all(each.get("probe") for each in published)
    await eventually(lambda: _shown_open(stack), "the metric says so")
    assert (await stack.until(expiring, "dead"))["error"]["class"] == "Expired"
    assert await stack.sql.fetchval("SELECT count(*) FROM dead_letters WHERE task_id = ANY($1)", tasks) == 0

    # It recovers by itself.
    world.away = None
    for row in await stack.until_all(tasks, "succeeded"):
        assert row["attempts"] == world.effects(row["id"]) == 1
    await _circuit(stack, is_open=False)
    assert world.effects(expiring) == 0


async def _circuit(stack: Stack, *, is_open: bool) -> None:
    async def so() -> bool:
        row = await stack.sql.fetchrow("SELECT open FROM circuits WHERE provider = 'outside'")
        return row is not None and row["open"] is is_open

    await eventually(so, f"the circuit is {'open' if is_open else 'closed'}")


async def _probed(world: World) -> None:
    checks = world.checks

    async def so() -> bool:
        return world.checks > checks

    await eventually(so, "it is probed")


async def _published_since(stack: Stack, before: dict[int, int]) -> list[dict[str, Any]]:
    """What the records say that stand behind these offsets by now."""
    topic = stack.topic("provided")
    ends = await log_ends(stack.positions, topic)
    count = sum(ends.values()) - sum(before.values())
    if count == 0:
        return []
    consumer = AIOKafkaConsumer(bootstrap_servers=stack.settings.kafka.bootstrap_servers)
    await consumer.start()
    consumer.assign([TopicPartition(topic, number) for number in ends])
    for number, offset in before.items():
        consumer.seek(TopicPartition(topic, number), offset)
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                found += [json.loads(record.value) for record in records]
    await consumer.stop()
    return found


async def _handed_back(stack: Stack, tasks: list[UUID]) -> None:
    """All wait in PostgreSQL, no attempt is spent, and the lag is zero. (A probe may be on its way just now.)"""

    async def so() -> bool:
        rows = await stack.rows(tasks)
        waiting = all(row["state"] == "scheduled" and row["attempts"] == 0 for row in rows)
        return waiting and await stack.lag("provided") == 0

    await eventually(so, "all are released")


async def _shown_open(stack: Stack) -> bool:
    open_now = await stack.metric("taskflux_circuit_open", provider="outside") == 1
    return open_now and await stack.metric("taskflux_circuit_open_seconds", provider="outside") > 0
