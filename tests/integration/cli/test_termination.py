"""SIGTERM to a handler under load: what a pod's grace period has to cover."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import pytest

from taskflux.handlers.process_simulated import process_simulated
from taskflux.store.tasks import TaskTypes
from taskflux.stream.provision import ensure_topics
from tests.integration.system.stack import Stack, eventually

DRAIN = 4.0
MARGIN = 15.0


async def _submitted(stack: Stack, documents: Sequence[Mapping[str, Any]]) -> list[UUID]:
    answer = await stack.client.post("/tasks/batch", json=documents)
    return [UUID(each["taskId"]) for each in answer.json()]


async def test_a_handler_under_load_drains_within_its_time_and_ends_well(stack: Stack) -> None:
    await TaskTypes(stack.database).register(process_simulated.task_type())
    await ensure_topics(stack.settings.kafka, ["simulated"])
    worker = stack.settings.worker.model_copy(update={"drain_seconds": DRAIN}).model_dump_json()
    child = stack.spawn("process-simulated", "under-load", TASKFLUX_WORKER=worker)
    quick = [{"taskType": "simulated", "payload": {"delayMs": 700}}] * 300
    slow = [{"taskType": "simulated", "payload": {"delayMs": 60_000}}] * 3
    slow_ones = await _submitted(stack, slow)
    for task in slow_ones:  # before the others are sent: otherwise they may wait for a slot, and are released
        await stack.until(task, "running")
    quick_ones = await _submitted(stack, quick)
    tasks = [*slow_ones, *quick_ones]

    async def is_under_load() -> bool:
        done = [row for row in await stack.rows(quick_ones) if row["state"] == "succeeded"]
        return len(done) >= 64

    await eventually(is_under_load, "some are done, and the slow ones run")
    began = time.monotonic()
    child.send(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), DRAIN + MARGIN) == 0
    took = time.monotonic() - began
    assert DRAIN <= took < DRAIN + MARGIN
    # No claim waits for its lease to expire: what ended has succeeded, the rest is due again.
    rows = {row["id"]: row for row in await stack.rows(tasks)}
    assert {rows[task]["state"] for task in quick_ones} <= {"succeeded", "scheduled", "queued"}
    assert {rows[task]["state"] for task in slow_ones} <= {"scheduled", "queued"}
    assert await stack.sql.fetchval("SELECT count(*) FROM claims WHERE type = 'simulated'") == 0
    assert await stack.sql.fetchval("SELECT ended FROM workers WHERE pid = $1", child.pid)
    # Another takes the rest, and no quick one runs twice.
    stack.spawn("process-simulated", "after-it")
    for row in await stack.until_all(quick_ones, "succeeded"):
        assert row["attempts"] == 1
    for task in slow_ones:
        await stack.client.delete(f"/tasks/{task}")


@pytest.mark.parametrize("part", ["relay", "dlq-sink", "router", "notify", "ingest"])
async def test_every_other_part_ends_well_at_once(stack: Stack, part: str) -> None:
    topic = stack.topic("scripted").replace("tasks.", "of-others.")
    own = {"TASKFLUX_ROUTER__TOPIC": topic, "TASKFLUX_SMTP__HOST": "127.0.0.1", "TASKFLUX_SMTP__SENDER": "a@b.example"}
    child = stack.spawn(part, f"ending-{part}", cwd=None, **own)

    async def started() -> bool:
        assert child.running, child.last_words()
        return "started" in child.last_words()

    await eventually(started, f"{part} starts")
    child.send(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), MARGIN) == 0, child.last_words()
