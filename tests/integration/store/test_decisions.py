"""Cancelling and resolving, down to the tables."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from taskflux.http.tasks import parse_timeline
from taskflux.store.claims import Settlement
from taskflux.store.database import Database
from taskflux.store.publishing import Confirmation, Publishing
from taskflux.store.tasks import Resolution, Tasks, TaskTypes
from taskflux.store.texts import NOTE_LENGTH
from taskflux.store.upkeep import Upkeep
from taskflux.tasks.model import TaskType
from tests.integration.store.rows import DIED, DONE, HELD, end, sql, state_of, submit, worker


async def row_of(database: Database, task: UUID) -> Any:
    [row] = await sql(database, "SELECT * FROM tasks WHERE id = $1", task)
    return row


async def due(database: Database) -> list[tuple[UUID, bool, int]]:
    return [tuple(row) for row in await sql(database, "SELECT task_id, dead, version FROM due ORDER BY task_id")]


async def held(database: Database, **changes: Any) -> UUID:
    [task] = await submit(database, **changes)
    await end(database, [task], HELD)
    return task


async def test_a_cancelled_task_is_no_longer_due_and_its_record_cannot_be_claimed(database: Database) -> None:
    [waiting, published] = await submit(database, 2)
    await Publishing(database, 10.0).confirm([Confirmation(published, 1, UUID(int=7), 0, 0)])
    for task in (waiting, published):
        assert await Tasks(database).cancel(task, "default", "not wanted any more")
        assert not await Tasks(database).cancel(task, "default")
    assert await due(database) == []
    claims = await worker(database)
    assert await claims.claim("simulated", {waiting: 1, published: 1}) == []
    assert await claims.claim("simulated", {waiting: 2, published: 2}) == []
    row = await row_of(database, waiting)
    assert (row["state"], row["version"]) == ("cancelled", 2)
    assert parse_timeline(row["timeline"])[-1]["event"] == "cancelled"
    assert parse_timeline(row["timeline"])[-1]["note"] == "not wanted any more"


async def test_a_running_or_ended_task_is_not_cancelled(database: Database) -> None:
    tasks = await submit(database, 4)
    await (await worker(database)).claim("simulated", {tasks[0]: 1})
    for task, decision in zip(tasks[1:], (DONE, DIED, HELD), strict=True):
        await end(database, [task], decision)
    before = [await row_of(database, task) for task in tasks]
    for task in tasks:
        assert not await Tasks(database).cancel(task, "default")
    assert [await row_of(database, task) for task in tasks] == before


async def test_of_a_cancel_and_a_claim_at_once_one_wins(database: Database) -> None:
    tasks = await submit(database, 40)
    claims = await worker(database)
    answers = await asyncio.gather(
        *(claims.claim("simulated", {task: 1}) for task in tasks),
        *(Tasks(database).cancel(task, "default") for task in tasks),
    )
    for task, claimed, cancelled in zip(tasks, answers[:40], answers[40:], strict=True):
        assert bool(claimed) != cancelled
        assert await state_of(database, task) == ("running" if claimed else "cancelled")


async def test_another_tenant_cannot_decide(database: Database) -> None:
    [task] = await submit(database)
    uncertain = await held(database)
    assert not await Tasks(database).cancel(task, "another")
    assert not await Tasks(database).resolve(uncertain, "another", Resolution.SUCCEEDED)


async def test_a_task_resolved_as_succeeded_has_succeeded(database: Database) -> None:
    task = await held(database)
    assert await Tasks(database).resolve(task, "default", Resolution.SUCCEEDED, "the customer\nhas it | really")
    row = await row_of(database, task)
    assert (row["state"], row["error_class"], row["error_reason"]) == ("succeeded", None, None)
    entry = parse_timeline(row["timeline"])[-1]
    assert (entry["event"], entry["note"]) == ("resolved-succeeded", "the customer has it / really")
    assert not any(entry[0] == task for entry in await due(database) if entry[1])


async def test_a_task_resolved_as_dead_has_a_dead_letter_to_publish_with_its_error_class(database: Database) -> None:
    quiet, told = await held(database), await held(database)
    assert await Tasks(database).resolve(quiet, "default", Resolution.DEAD)
    assert await Tasks(database).resolve(told, "default", Resolution.DEAD, "it was never sent\x00 " + "x" * 500)
    row = await row_of(database, quiet)
    assert (row["state"], row["error_class"], row["error_reason"]) == ("dead", "Ambiguous", "perhaps")
    assert (quiet, True, row["version"]) in await due(database)
    assert {letter.id for letter in await Publishing(database, 10.0).take_dead(10)} == {quiet, told}
    row = await row_of(database, told)
    assert row["error_reason"] == "it was never sent� " + "x" * 500
    assert len(parse_timeline(row["timeline"])[-1]["note"]) == NOTE_LENGTH


async def test_a_task_resolved_as_resend_is_due_now_and_runs_though_its_attempts_were_spent(
    database: Database,
) -> None:
    task = await held(database, max_attempts=1)
    await sql(database, "UPDATE tasks SET expires_at = now() - interval '1 minute' WHERE id = $1", task)
    assert await Tasks(database).resolve(task, "default", Resolution.RESEND)
    [taken] = await Publishing(database, 10.0).take("simulated", 10)
    [claim] = await (await worker(database)).claim("simulated", {task: taken.version})
    assert (claim.attempt, claim.max_attempts, claim.expired) == (1, 1, False)


async def test_a_lost_worker_may_still_report_on_a_task_that_waits_to_be_resent(database: Database) -> None:
    await TaskTypes(database).register(TaskType("simulated", "{}", 8, "hold", None))
    tasks = await submit(database, 2)
    claims = await worker(database)
    held = {claim.id: claim for claim in await claims.claim("simulated", dict.fromkeys(tasks, 1))}
    await claims.end()
    await Upkeep(database).sweep(10, 100.0)
    await Tasks(database).resolve(tasks[0], "default", Resolution.RESEND)
    await Tasks(database).resolve(tasks[1], "default", Resolution.DEAD)
    settled = await claims.settle_all([Settlement(task, held[task].version, DONE) for task in tasks])
    assert [each.written for each in settled] == [True, False]
    assert [await state_of(database, task) for task in tasks] == ["succeeded", "dead"]


@pytest.mark.parametrize("decision", [DONE, DIED, None])
async def test_only_an_uncertain_task_is_resolved(decision: Any, database: Database) -> None:
    [task] = await submit(database)
    if decision is not None:
        await end(database, [task], decision)
    before = await row_of(database, task)
    for resolution in Resolution:
        assert not await Tasks(database).resolve(task, "default", resolution)
    assert await row_of(database, task) == before


async def test_of_many_resolutions_at_once_one_is_written(database: Database) -> None:
    task = await held(database)
    answers = await asyncio.gather(
        *(Tasks(database).resolve(task, "default", resolution) for resolution in [*Resolution] * 5)
    )
    assert sum(answers) == 1
