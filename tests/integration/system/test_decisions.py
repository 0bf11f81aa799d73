"""Listing, cancelling and resolving on a running TaskFlux."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from tests.integration.system.scripted import World, provided
from tests.integration.system.stack import Stack, eventually


async def listed(stack: Stack, **query: Any) -> list[dict[str, Any]]:
    """All pages of a list."""
    items: list[dict[str, Any]] = []
    while True:
        answer = await stack.client.get("/tasks", params=query)
        assert answer.status_code == 200, answer.text
        items += answer.json()["items"]
        if answer.json()["nextCursor"] is None:
            return items
        query["cursor"] = answer.json()["nextCursor"]


async def resolve(stack: Stack, task: UUID, outcome: str, reason: str | None = None) -> dict[str, Any]:
    answer = await stack.client.post(f"/tasks/{task}/resolve", json={"outcome": outcome, "reason": reason})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_tasks_are_found_by_where_they_stand(stack: Stack, world: World) -> None:
    key: dict[str, Any] = {"key": "found-by-where-they-stand"}
    done = await stack.submit("scripted", **key)
    dead = await stack.submit("scripted", ["permanent"], **key)
    held = await stack.submit("held", ["ambiguous"], **key)
    running = await stack.submit("scripted", ["wait"], **key)
    later = await stack.submit("scripted", delaySeconds=3600, metadata={"why": "later"}, **key)
    await asyncio.gather(
        stack.until(done, "succeeded"), stack.until(dead, "dead"), stack.until(held, "uncertain"),
        stack.until(running, "running"),
    )  # fmt: skip
    expected = {"succeeded": done, "dead": dead, "uncertain": held, "running": running, "scheduled": later}
    for status, task in expected.items():
        assert [item["taskId"] for item in await listed(stack, status=status, **key)] == [str(task)]
        assert str(task) in [item["taskId"] for item in await listed(stack, status=status)]
    assert [item["taskId"] for item in await listed(stack, limit=2, **key)] == [
        str(task) for task in (later, running, held, dead, done)
    ]
    [item] = await listed(stack, **{"metadata.why": "later"})
    assert item["taskId"] == str(later)
    assert [item["status"] for item in await listed(stack, taskType="held", **key)] == ["uncertain"]
    whole = await stack.get(dead)
    [item] = await listed(stack, status="dead", **key)
    assert item == {name: value for name, value in whole.items() if name not in ("payload", "timeline")}
    world.gates[running].set()
    await stack.until(running, "succeeded")


async def test_a_cancelled_task_never_runs(stack: Stack, world: World) -> None:
    task = await stack.submit("scripted", delaySeconds=0.5)
    answer = await stack.client.delete(f"/tasks/{task}")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    behind = await stack.submit("scripted", delaySeconds=0.6)
    await stack.until(behind, "succeeded")
    assert (await stack.get(task))["status"] == "cancelled"
    assert world.effects(task) == 0


async def test_a_task_is_cancelled_while_its_record_waits_in_kafka(stack: Stack, world: World) -> None:
    await stack.stop("provided")
    try:
        task = await stack.submit("provided")
        await stack.until(task, "queued")
        assert (await stack.client.delete(f"/tasks/{task}")).json()["status"] == "cancelled"
        behind = await stack.submit("provided")
    finally:
        await stack.start(provided)
    await stack.until(behind, "succeeded")
    assert (await stack.get(task))["status"] == "cancelled"
    assert world.effects(task) == 0


async def test_a_running_task_cannot_be_cancelled(stack: Stack, world: World) -> None:
    task = await stack.submit("scripted", ["wait"])
    await stack.until(task, "running")
    answer = await stack.client.delete(f"/tasks/{task}")
    assert (answer.status_code, answer.json()["taskStatus"]) == (409, "running")
    world.gates[task].set()
    await stack.until(task, "succeeded")
    assert (await stack.client.delete(f"/tasks/{task}")).status_code == 409


async def test_a_person_decides_on_uncertain_tasks(stack: Stack, world: World) -> None:
    done, again, given_up = [await stack.submit("held", ["ambiguous", "succeed"]) for _ in range(3)]
    for task in (done, again, given_up):
        await stack.until(task, "uncertain")
    assert (await resolve(stack, done, "succeeded", "it arrived"))["status"] == "succeeded"
    assert (await resolve(stack, again, "resend"))["status"] == "scheduled"
    assert (await resolve(stack, given_up, "dead", "nobody wants it"))["status"] == "dead"
    document = await stack.until(again, "succeeded")
    assert world.attempts[again] == [1, 2]
    assert "resolved-resend" in [entry["event"] for entry in document["timeline"]]
    assert (await stack.get(done))["timeline"][-1]["note"] == "it arrived"
    assert (await stack.get(given_up))["error"] == {"class": "Ambiguous", "reason": "nobody wants it"}

    async def dead_letter() -> Any:
        return await stack.sql.fetchrow("SELECT * FROM dead_letters WHERE task_id = $1", given_up)

    letter = await eventually(dead_letter, "its dead letter is stored")
    assert (letter["error_class"], letter["reason"]) == ("Ambiguous", "nobody wants it")
    assert world.effects(done) == world.effects(given_up) == 1


async def test_a_resolved_task_is_shown_as_it_is_though_redis_keeps_documents(stack: Stack) -> None:
    task = await stack.submit("held", ["ambiguous"])
    await stack.until(task, "uncertain")
    shown = await resolve(stack, task, "succeeded")
    assert await stack.get(task) == shown
    assert await stack.get(task) == shown
    answer = await stack.client.post(f"/tasks/{task}/resolve", json={"outcome": "dead"})
    assert (answer.status_code, answer.json()["taskStatus"]) == (409, "succeeded")
