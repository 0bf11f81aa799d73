"""The outbox while two releases are at work: who deletes its rows, who finds them, and what a leader of the release
before and the migration do with them (docs/protocol.md, "Two releases at once")."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from taskflux.store import claims
from taskflux.store.publishing import SQL as PUBLISHING
from taskflux.store.upkeep import Published
from tests.integration.store.before import (
    LEADER,
    NOWHERE,
    Before,
    batch,
    claim_directly,
    late,
    outcome,
    pending,
    published,
    queued,
    runs_once,
    settle,
)
from tests.integration.store.rows import DIED
from tests.integration.store.scene import LOG, TYPE, Scene

# Outbox rows ----------------------------------------------------------------------------------------------------------


async def test_a_confirmation_of_the_release_before_leaves_a_published_outbox_row(scene: Scene, before: Before) -> None:
    task = await queued(scene, before)
    assert (await scene.wide(task))["state"] == "queued"
    row = await scene.due(task)
    assert row is not None
    assert (row["version"], row["published_log"], row["published_partition"], row["published_offset"]) == (1, LOG, 0, 1)
    _, found = await scene.upkeep.audit_page(NOWHERE, 100)
    assert found == [Published(task, TYPE, 1, LOG, 0, 1)]
    await scene.upkeep.requeue(found, 1e6)
    assert await scene.state(task) == ("scheduled", 2)


async def test_a_claim_of_the_release_before_deletes_the_published_outbox_row(scene: Scene, before: Before) -> None:
    for prepare in (published, queued):
        task = await prepare(scene, before)
        assert await before.claim(await scene.worker(), task, 1)
        assert await scene.due(task) is None


async def test_a_claim_of_the_release_before_that_overtakes_our_confirmation_leaves_nothing_for_ever(
    scene: Scene, before: Before
) -> None:
    task = await pending(scene, before)
    worker = await scene.worker()
    assert await before.claim(worker, task, 1)
    await scene.confirm([task])
    await before.run("settle", outcome(task, 2))
    _, found = await scene.upkeep.audit_page(NOWHERE, 100)
    await scene.upkeep.requeue(found, 1e6)
    assert await scene.state(task) == ("succeeded", 2)
    assert await scene.due(task) is None


async def test_our_confirmation_of_a_record_that_the_release_before_has_confirmed_changes_nothing(
    scene: Scene, before: Before
) -> None:
    task = await queued(scene, before)
    await scene.confirm([task])
    assert (await scene.wide(task))["state"] == "queued"
    assert (await scene.due(task) or {})["published_offset"] == 1


async def test_a_late_outcome_of_the_release_before_leaves_no_outbox_row_for_ever(scene: Scene, before: Before) -> None:
    task = await late(scene, before)
    await scene.confirm([task], 3)
    await before.run("settle", outcome(task, 2))
    assert await scene.state(task) == ("succeeded", 4)
    _, found = await scene.upkeep.audit_page(NOWHERE, 100)
    await scene.upkeep.requeue(found, 1e6)
    assert await scene.due(task) is None


async def test_an_expiry_of_the_release_before_keeps_the_outbox_row_of_a_published_task(
    scene: Scene, before: Before
) -> None:
    """Its relay drops the outbox rows of expired tasks that it does not find `scheduled`; our auditor reads them."""
    (task,) = await scene.accepted()
    await scene.sql("UPDATE tasks SET expires_at = now() - interval '1 second' WHERE id = $1", task)
    await scene.sql("UPDATE due SET expires_at = now() - interval '1 second' WHERE task_id = $1", task)
    await before.confirm(task, 1)
    for row in await before.run("expired_now", {"limit": 100}):
        await before.run("expire_waiting", batch(row["task_id"], row["version"]))
    state, version = await scene.state(task)
    _, found = await scene.upkeep.audit_page(NOWHERE, 100)
    assert state == "dead" or found == [Published(task, TYPE, version, LOG, 0, 1)]


@pytest.mark.parametrize("name", ["take_due", "expire_waiting"])
async def test_our_relay_that_comes_too_late_keeps_the_outbox_row_of_a_confirmed_task(
    name: str, scene: Scene, before: Before
) -> None:
    """It has read the row while that was pending; the release before confirms the record before it takes the row."""
    task = await queued(scene, before)
    statement, chosen = PUBLISHING[name], batch(task, 1)
    assert not await scene.database.fetch(statement, **{each: chosen[each] for each in statement.parameters})
    _, found = await scene.upkeep.audit_page(NOWHERE, 100)
    assert found == [Published(task, TYPE, 1, LOG, 0, 1)]


@pytest.mark.parametrize("name", ["take_due", "expire_waiting"])
async def test_what_a_leader_of_the_release_before_deletes_too_late_comes_back_with_our_next_leader(
    name: str, scene: Scene, before: Before
) -> None:
    """It deletes the row in that case. The backfill that began before it led has to begin again."""
    task = await queued(scene, before)
    await scene.sql("DELETE FROM backfill_published")
    await scene.sql("INSERT INTO backfill_published VALUES ($1)", UUID(int=2**128 - 1))
    await before.lead()
    assert not await before.run(name, batch(task, 1))
    await scene.sql("DELETE FROM leaders")  # it resigns
    assert await scene.upkeep.lead("relay", uuid7(), 10.0, None)
    await backfill(scene)
    _, found = await scene.upkeep.audit_page(NOWHERE, 100)
    assert found == [Published(task, TYPE, 1, LOG, 0, 1)]


async def test_a_settlement_of_the_release_before_publishes_a_retry_anew(scene: Scene, before: Before) -> None:
    task = await published(scene, before)
    worker = await scene.worker()
    assert await before.claim(worker, task, 1)
    await before.run("settle", outcome(task, 2, "scheduled", "retry"))
    await scene.make_due(task)
    (taken,) = await scene.publishing.take(TYPE, 10)
    assert (taken.id, taken.version) == (task, 3)
    await scene.confirm([task], 3)
    (claim,) = await worker.claim(TYPE, {task: 3})
    assert (claim.version, claim.attempt) == (4, 2)


async def test_a_retry_of_ours_is_published_by_the_release_before(scene: Scene, before: Before) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    retry = outcome(claim.id, claim.version, "scheduled", "retry")
    settled = claims.SQL["settle"]
    chosen = retry | {"workers": [worker.worker.id], "version": None, "state": None, "event": None, "causes": [None]}
    await scene.database.fetch(settled, **{name: chosen[name] for name in settled.parameters})
    await scene.make_due(claim.id)
    (taken,) = await before.run("take_due", batch(claim.id, 2))
    assert taken["version"] == 3
    await before.confirm(claim.id, 3)
    assert len(await before.claim(worker, claim.id, 3)) == 1


async def test_a_dead_letter_of_ours_is_published_by_the_release_before(scene: Scene, before: Before) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, DIED)
    row = await scene.due(claim.id, dead=True)
    assert row is not None
    assert row["version"] == (await scene.wide(claim.id))["version"] == 2


# The leader -----------------------------------------------------------------------------------------------------------


async def test_the_leader_of_the_release_before_finds_what_we_have_published(scene: Scene, before: Before) -> None:
    task = await published(scene, before)
    assert await before.queued() == []
    await before.lead()
    (row,) = await before.queued()
    assert (row["id"], row["version"]) == (task, 1)
    assert (row["published_log"], row["published_partition"], row["published_offset"]) == (LOG, 0, 0)
    (requeued,) = await before.run("requeue", batch(task, 1))
    assert requeued["tasks"] == 1
    assert await scene.state(task) == ("scheduled", 2)
    await scene.make_due(task)
    assert len(await before.run("take_due", batch(task, 2))) == 1


async def test_a_leader_of_the_release_before_writes_back_page_by_page_and_begins_again(
    scene: Scene, before: Before
) -> None:
    first = await published(scene, before)
    await before.lead()
    second = await published(scene, before)
    for _ in range(3):
        await before.lead()
    assert {row["id"] for row in await before.queued()} == {first, second}


async def test_a_leader_of_ours_writes_nothing_back(scene: Scene, before: Before) -> None:
    task = await published(scene, before)
    assert await scene.upkeep.lead("relay", uuid7(), 10.0, None)
    assert await before.queued() == []
    assert (await scene.wide(task))["state"] == "scheduled"


async def test_what_a_leader_of_the_release_before_has_written_back_is_claimed_once(
    scene: Scene, before: Before
) -> None:
    task = await published(scene, before)
    await before.lead()
    worker, other = await scene.worker(), await scene.worker()
    (claim,) = await worker.claim(TYPE, {task: 1})
    assert await before.claim(other, task, 1) == []
    await before.lead()
    assert await before.run("requeue", batch(task, 1)) == []
    await runs_once(scene, worker, task, claim.version, claim.attempt)


async def test_a_leader_of_the_release_before_writes_nothing_back_of_a_claimed_task(
    scene: Scene, before: Before
) -> None:
    """It waits for no claim, and a claim waits for it."""
    task = await published(scene, before)
    worker = await scene.worker()
    async with scene.direct.transaction():
        (claim,) = await claim_directly(scene, worker, task, 1)
        await before.lead()
    assert await before.queued() == []
    await before.lead()
    await runs_once(scene, worker, task, claim["version"], claim["attempt"])


async def test_our_claim_that_waits_for_the_write_back_runs_the_task(scene: Scene, before: Before) -> None:
    task = await published(scene, before)
    worker = await scene.worker()
    async with scene.direct.transaction():
        await before.run("lead", LEADER, directly=True)
        waiting = asyncio.ensure_future(worker.claim(TYPE, {task: 1}))
        await scene.until_blocked()
    (claim,) = await waiting
    assert (claim.version, claim.attempt) == (2, 1)
    assert await before.queued() == []
    assert await settle(worker, claim)
    assert await scene.state(task) == ("succeeded", 2)
    assert await scene.events(task) == ["accepted", "published", "claimed", "succeeded"]


async def test_our_cancel_that_waits_for_the_write_back_tells_the_publish_once(scene: Scene, before: Before) -> None:
    task = await published(scene, before)
    async with scene.direct.transaction():
        await before.run("lead", LEADER, directly=True)
        waiting = asyncio.ensure_future(scene.tasks.cancel(task, "default"))
        await scene.until_blocked()
    assert await waiting
    assert await scene.events(task) == ["accepted", "published", "cancelled"]
    assert await scene.due(task) is None


async def test_our_auditor_that_waits_for_the_write_back_tells_the_publish_once(scene: Scene, before: Before) -> None:
    task = await published(scene, before)
    async with scene.direct.transaction():
        await before.run("lead", LEADER, directly=True)
        lost = [Published(task, TYPE, 1, LOG, 0, 0)]
        waiting = asyncio.ensure_future(scene.upkeep.requeue(lost, 1e6))
        await scene.until_blocked()
    await waiting
    assert await scene.events(task) == ["accepted", "published", "not-owed"]
    assert await scene.state(task) == ("scheduled", 2)


# What was queued before the migration ---------------------------------------------------------------------------------


async def queued_before_the_migration(scene: Scene, before: Before) -> UUID:
    """`queued` without an outbox row, and the backfill still has to begin."""
    task = await queued(scene, before)
    await scene.sql("DELETE FROM due WHERE task_id = $1", task)
    await scene.sql("DELETE FROM backfill_published")
    await scene.sql("INSERT INTO backfill_published VALUES ($1)", NOWHERE)
    return task


async def backfill(scene: Scene) -> None:
    while await scene.upkeep.backfill(1):
        pass


async def test_what_was_queued_before_the_migration_gets_its_outbox_row(scene: Scene, before: Before) -> None:
    tasks = [await queued_before_the_migration(scene, before) for _ in range(3)]
    await backfill(scene)
    _, found = await scene.upkeep.audit_page(NOWHERE, 100)
    assert found == [Published(task, TYPE, 1, LOG, 0, 1) for task in sorted(tasks)]


async def test_the_backfill_gives_no_outbox_row_to_a_claimed_task(scene: Scene, before: Before) -> None:
    ours, theirs = [await queued_before_the_migration(scene, before) for _ in range(2)]
    worker = await scene.worker()
    await worker.claim(TYPE, {ours: 1})
    assert await before.claim(worker, theirs, 1)
    await backfill(scene)
    assert await scene.due(ours) is None
    assert await scene.due(theirs) is None
