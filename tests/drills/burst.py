"""A burst of mixed tasks, sent so that each is accepted once even if a process dies meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any
from uuid import UUID

import httpx

CHUNK = 1000
PATIENCE = 180.0
"""Seconds that ingest may be unreachable."""
FAIL_RATE = 0.1
"""How often some attempts fail: rarely enough that no task fails at each of its attempts, and counts as lost."""


def make_tasks(number: int, seed: int) -> list[dict[str, Any]]:
    """Mails, SMS and simulated work, some of which fails now and then; the same for the same seed."""
    draw = random.Random(seed)
    return [_task(place, draw) for place in range(number)]


def _task(place: int, draw: random.Random) -> dict[str, Any]:
    task_type = draw.choice(("email", "sms", "simulated"))
    payload: dict[str, Any]
    match task_type:
        case "email":
            payload = {"to": f"user{place}@example.org", "subject": f"Drill {place}", "body": f"Number {place}.\n"}
        case "sms":
            payload = {"mobile": f"91{9_000_000_000 + place}", "name": f"User {place}"}
        case _:
            payload = {"delayMs": draw.randint(0, 20), "failRate": draw.choice((0, FAIL_RATE))}
    return {"taskType": task_type, "payload": payload, "idempotencyKey": f"drill-{place}"}


def count(tasks: list[dict[str, Any]]) -> Counter[str]:
    """How many of each type."""
    return Counter(task["taskType"] for task in tasks)


async def send(url: str, tasks: list[dict[str, Any]]) -> list[UUID]:
    """The ids of all of them, once each is accepted; what is not surely accepted is sent again under its key."""
    accepted: dict[str, UUID] = {}
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client, asyncio.timeout(PATIENCE):
        chunks = [tasks[start : start + CHUNK] for start in range(0, len(tasks), CHUNK)]
        turns = asyncio.Semaphore(4)
        await asyncio.gather(*(_send_chunk(client, chunk, accepted, turns) for chunk in chunks))
    return list(accepted.values())


async def _send_chunk(
    client: httpx.AsyncClient, chunk: list[dict[str, Any]], accepted: dict[str, UUID], turns: asyncio.Semaphore
) -> None:
    left = chunk
    while left:
        async with turns:
            try:
                answer = await client.post("/tasks/batch", json=left)
                results = answer.json() if answer.status_code == 202 else []
            except (httpx.TransportError, ValueError):  # ingest died in the middle of its answer
                results = []
        for result in results:
            if result["status"] == 202:
                accepted[left[result["index"]]["idempotencyKey"]] = UUID(result["taskId"])
            elif result["status"] != 503:
                raise RuntimeError(f"refused: {result}")
        left = [task for task in left if task["idempotencyKey"] not in accepted]
        if left:
            await asyncio.sleep(0.5)
