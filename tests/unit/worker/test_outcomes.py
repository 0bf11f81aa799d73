from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest

from taskflux.store.claims import Claim, Settlement
from taskflux.tasks.decision import Decision, release
from taskflux.tasks.states import Event, State
from taskflux.telemetry import logs
from taskflux.worker.outcomes import Outcomes
from tests.integration.store.scene import TYPE, Scene, succeeded
from tests.unit.world import WatchedDatabase

DONE = succeeded({"sent": True})


def watched(scene: Scene) -> WatchedDatabase:
    return cast("WatchedDatabase", scene.database)


async def write(outcomes: Outcomes, claims: list[Claim], decision: Decision = DONE) -> None:
    """Return once all of them are written."""
    written = asyncio.Semaphore(0)
    for claim in claims:
        outcomes.write(claim, Settlement(claim.id, claim.version, decision), written.release)
    async with asyncio.timeout(20):
        for _ in claims:
            await written.acquire()


async def states(scene: Scene, claims: list[Claim]) -> set[str]:
    return {(await scene.row(claim.id))["state"] for claim in claims}


async def test_outcomes_that_come_together_are_written_together(scene: Scene) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker, 50)
    await write(Outcomes(worker), claims)
    assert await states(scene, claims) == {"succeeded"}
    assert watched(scene).ran["settle"] == 1


async def test_outcomes_that_come_while_others_are_written_are_the_next_group(scene: Scene) -> None:
    worker = await scene.worker()
    first, *others = await scene.running(worker, 50)
    outcomes, go, asked = Outcomes(worker), asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        asked.set()
        await go.wait()

    watched(scene).when["settle"] = slow
    writing = [asyncio.create_task(write(outcomes, [first]))]
    await asked.wait()
    writing.append(asyncio.create_task(write(outcomes, others)))
    go.set()
    await asyncio.gather(*writing)
    assert (watched(scene).ran["settle"], outcomes.under_way) == (2, 0)
    assert await states(scene, [first, *others]) == {"succeeded"}


async def test_outcomes_wait_for_a_postgresql_that_cannot_be_reached(scene: Scene) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker, 3)
    outcomes, database = Outcomes(worker), watched(scene)
    database.unreachable.add("settle")
    writing = asyncio.create_task(write(outcomes, claims))
    await database.failed.wait()
    assert (outcomes.under_way, await states(scene, claims)) == (3, {"running"})
    database.unreachable.clear()
    await writing
    assert (outcomes.under_way, await states(scene, claims)) == (0, {"succeeded"})


async def test_an_outcome_whose_answer_was_lost_is_written_once(scene: Scene) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker)
    watched(scene).mute.add("settle")
    await write(Outcomes(worker), claims)
    assert (await scene.events(claims[0].id)).count("succeeded") == 1


async def test_an_outcome_that_postgresql_refuses_is_written_reduced_and_holds_up_no_other(scene: Scene) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker, 4)
    outcomes = Outcomes(worker)
    refused = Decision(Event.RETRY, State.SCHEDULED, delay=1e300, error_class="Transient", reason="x")
    await asyncio.gather(write(outcomes, claims[:1], refused), write(outcomes, claims[1:]))
    row = await scene.row(claims[0].id)
    assert (row["state"], row["error_class"], row["error_reason"]) == (
        "scheduled",
        "Transient",
        "what it returned or raised cannot be stored",
    )
    assert await states(scene, claims[1:]) == {"succeeded"}


async def test_outcomes_that_a_bug_of_ours_cannot_write_hold_up_no_others(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker, 4)
    outcomes = Outcomes(worker)
    odd = replace(DONE, releases=cast("int", "many"))  # asyncpg refuses it before PostgreSQL sees it
    outcomes.write(claims[0], Settlement(claims[0].id, claims[0].version, odd))
    await write(outcomes, claims[1:])
    assert (await states(scene, claims[1:]), outcomes.under_way) == ({"succeeded"}, 1)
    outcomes.give_up()


async def test_two_outcomes_of_a_task_are_written_one_after_the_other(scene: Scene) -> None:
    """Its lease was lost while it ran, and it runs here again."""
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    outcomes, written = Outcomes(worker), list[str]()
    late = replace(DONE, result={"sent": "late"})
    for number, (version, decision) in enumerate(((claim.version, DONE), (claim.version + 2, late))):
        settlement = Settlement(claim.id, version, decision)
        outcomes.write(claim, settlement, partial(written.append, str(number)))
    async with asyncio.timeout(20):
        while outcomes.under_way:  # noqa: ASYNC110 - PostgreSQL says so
            await asyncio.sleep(0.001)
    assert (written, watched(scene).ran["settle"]) == (["0", "1"], 2)
    assert (await scene.row(claim.id))["result"] == '{"sent": true}'


async def test_outcomes_whose_writing_other_code_cancels_are_written_all_the_same(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever a handler does to all tasks of the loop."""
    monkeypatch.setattr("taskflux.worker.outcomes.AGAIN", 0.01)
    worker = await scene.worker()
    claims = await scene.running(worker, 3)
    outcomes, asked = Outcomes(worker), asyncio.Event()
    before = asyncio.all_tasks()

    async def slow() -> None:
        watched(scene).when.clear()
        asked.set()
        await asyncio.sleep(30)

    watched(scene).when["settle"] = slow
    for claim in claims:
        outcomes.write(claim, Settlement(claim.id, claim.version, DONE))
    await asked.wait()
    for task in asyncio.all_tasks() - before:
        task.cancel()
    async with asyncio.timeout(20):
        while outcomes.under_way:  # noqa: ASYNC110 - PostgreSQL says so
            await asyncio.sleep(0.001)
    assert await states(scene, claims) == {"succeeded"}


@pytest.mark.parametrize("result", [5, "text", [1], object()])
async def test_a_result_that_is_not_a_mapping_is_not_kept(scene: Scene, result: Any) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker)
    await write(Outcomes(worker), claims, replace(DONE, result=result))
    row = await scene.row(claims[0].id)
    assert (row["state"], row["result"]) == ("succeeded", None)


async def test_an_outcome_is_logged_once_it_is_written_and_without_personal_data(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker)
    died = Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="ada@example.org refused")
    with caplog.at_level(logging.INFO):
        await write(Outcomes(worker), claims, died)
    (told,) = [record for record in caplog.records if record.name == "taskflux.worker.outcomes"]
    assert (told.levelno, told.getMessage()) == (logging.WARNING, "died")
    assert (vars(told)["error_class"], vars(told)["reason"]) == ("Permanent", "(address) refused")
    assert "ada@example.org" not in str(vars(told))


async def test_a_reason_that_is_left_out_leaves_no_empty_one(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "reason", lambda said, sent: None)  # as with TASKFLUX_LOG__REASONS=false
    worker = await scene.worker()
    claims = await scene.running(worker)
    await write(Outcomes(worker), claims, Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="refused"))
    (told,) = [record for record in caplog.records if record.name == "taskflux.worker.outcomes"]
    assert "reason" not in vars(told)


async def test_a_task_that_is_released_may_be_claimed_by_another(scene: Scene) -> None:
    worker, other = await scene.worker(), await scene.worker()
    claims = await scene.running(worker)
    await write(Outcomes(worker), claims, release("the worker ended before it began"))
    _, version = await scene.state(claims[0].id)
    (again,) = await other.claim(TYPE, {claims[0].id: version})
    assert again.attempt == 1
