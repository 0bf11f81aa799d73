"""The outcomes of a task when nothing is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from uuid_utils.compat import uuid7

from taskflux.store.tasks import Tasks
from taskflux.tasks.model import Submission
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


async def test_a_handler_that_takes_too_long_is_cut_off_and_tried_again_or_held(stack: Stack, world: World) -> None:
    again, held = await stack.submit("hasty", ["wait", "succeed"]), await stack.submit("held", ["wait", "succeed"])
    document = await stack.until(again, "succeeded")
    assert document["attempts"] == 2
    document = await stack.until(held, "uncertain")
    assert (document["error"]["class"], world.effects(held)) == ("Ambiguous", 1)


async def test_a_crash_is_counted_and_tried_again_within_the_budget(stack: Stack) -> None:
    before = await stack.metric("taskflux_errors_total", type="scripted", error_class="Crash")
    task = await stack.submit("scripted", ["crash"])
    document = await stack.until(task, "dead")
    assert (document["error"]["class"], document["attempts"]) == ("Crash", 4)
    assert await stack.metric("taskflux_errors_total", type="scripted", error_class="Crash") == before + 4


@pytest.mark.parametrize(
    ("word", "outcome", "attempts"),
    [
        ("return-text", "succeeded", 1),
        ("return-no-json", "succeeded", 1),
        ("return-no-mapping", "succeeded", 1),
        ("retry-after-text", "succeeded", 2),
        ("retry-after-nan", "succeeded", 2),
        ("reason-no-text", "dead", 1),
        ("own-kind-of-error", "succeeded", 2),
    ],
)
async def test_no_misbehaviour_of_a_handler_keeps_its_task_or_others_from_an_end(
    stack: Stack, world: World, word: str, outcome: str, attempts: int
) -> None:
    others = await stack.submit_many("scripted", 5)
    task = await stack.submit("scripted", [word, "succeed"])
    others += await stack.submit_many("scripted", 5)
    document = await stack.until(task, outcome)
    assert document["attempts"] == attempts == world.effects(task)
    await stack.until_all(others, "succeeded")


async def test_a_payload_that_passed_the_schema_and_not_the_handler_is_a_dead_letter(
    stack: Stack, world: World
) -> None:
    task = Submission(uuid7(), "scripted", '{"script": "no list"}', max_attempts=4)
    await Tasks(stack.database).insert([task], 0.0)
    document = await stack.until(task.id, "dead")
    assert document["error"]["class"] == "InvalidPayload"
    assert world.effects(task.id) == 0
    letter = await stack.dead_letter(task.id)
    assert (letter["error_class"], letter["payload"]) == ("InvalidPayload", task.payload)


async def test_a_task_for_later_waits_for_its_time(stack: Stack) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=0.8)
    at = await stack.submit("scripted", scheduleAt=moment.isoformat())
    after = await stack.submit("scripted", delaySeconds=0.8)
    for task in (at, after):
        document = await stack.until(task, "succeeded")
        claimed = next(entry for entry in document["timeline"] if entry["event"] == "claimed")
        assert claimed["at"] >= document["dueAt"]
    assert datetime.fromisoformat((await stack.get(at))["dueAt"]) == moment


async def test_a_task_that_waits_beyond_its_expiry_is_dead_as_expired(stack: Stack, world: World) -> None:
    expires_at = datetime.now(UTC) + timedelta(seconds=1.2)
    task = await stack.submit("scripted", ["transient"], expiresAt=expires_at.isoformat(), maxAttempts=1000)
    document = await stack.until(task, "dead")
    assert document["error"]["class"] == "Expired"
    assert (await stack.dead_letter(task))["error_class"] == "Expired"
