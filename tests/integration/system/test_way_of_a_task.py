from __future__ import annotations

from tests.integration.system.scripted import World
from tests.integration.system.stack import Stack


async def test_an_accepted_task_succeeds_and_shows_its_timeline(stack: Stack, world: World) -> None:
    task = await stack.submit("scripted")
    document = await stack.until(task, "succeeded")
    assert document["result"] == {"attempt": 1}
    events = [entry["event"] for entry in document["timeline"]]
    assert events[0] == "accepted"
    assert events[-2:] == ["claimed", "succeeded"]
    assert world.effects(task) == 1


async def test_a_transient_failure_is_tried_again_with_its_progress(stack: Stack, world: World) -> None:
    task = await stack.submit("scripted", ["transient", "transient", "succeed"])
    document = await stack.until(task, "succeeded")
    assert document["attempts"] == 3
    assert document["retryCount"] == 2
    assert world.attempts[task] == [1, 2, 3]


async def test_an_exhausted_task_is_a_dead_letter_with_its_reason(stack: Stack) -> None:
    task = await stack.submit("scripted", ["transient"], maxAttempts=2)
    document = await stack.until(task, "dead")
    assert document["error"] == {"class": "Transient", "reason": "try again"}
    assert document["attempts"] == 2


async def test_an_ambiguous_outcome_is_held_where_the_policy_says_so(stack: Stack, world: World) -> None:
    task = await stack.submit("held", ["ambiguous", "succeed"])
    document = await stack.until(task, "uncertain")
    assert document["error"]["class"] == "Ambiguous"
    assert world.effects(task) == 1
