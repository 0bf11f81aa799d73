"""What meets a claim that is being made: a claim leaves the wide row as it is, so nothing there tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from taskflux.store.claims import Claims, Settlement
from taskflux.store.publishing import Confirmation, Publishing
from taskflux.store.upkeep import Published, Upkeep
from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import LOG, SOURCE, TYPE, Scene, succeeded
from tests.integration.store.steps.world import Inside

RETRY = Decision(Event.RETRY, State.SCHEDULED, 3600.0, error_class="Transient", reason="later")
Run = Callable[[Scene, UUID], Awaitable[object]]


async def cancel(scene: Scene, task: UUID) -> object:
    return await scene.tasks.cancel(task, "default")


async def requeue(scene: Scene, task: UUID) -> object:
    return await scene.upkeep.requeue([Published(task, TYPE, 1, LOG, 0, 0)], 1e6)


async def claim(scene: Scene, task: UUID) -> object:
    return await (await scene.worker()).claim(TYPE, {task: 1})


async def take(scene: Scene, task: UUID) -> object:
    return await scene.publishing.take(TYPE, 10)


async def expire(scene: Scene, task: UUID) -> object:
    return await scene.publishing.expire(10)


DISABLED = "ALTER TABLE tasks DISABLE TRIGGER keep_claimed"
"""What keeps claims from statements of the release before: ours have to be right by themselves."""


@pytest_asyncio.fixture
async def bare(scene: Scene) -> AsyncIterator[Scene]:
    await scene.direct.execute(DISABLED)
    yield scene
    await scene.direct.execute("ALTER TABLE tasks ENABLE TRIGGER keep_claimed")


@asynccontextmanager
async def being_claimed(scene: Scene, task: UUID) -> AsyncIterator[Claims]:
    """The task is claimed, by a statement whose transaction commits at the end."""
    worker = await scene.worker()
    async with scene.direct.transaction():
        claims = Claims(Inside(scene.direct), worker.worker, SOURCE)
        assert len(await claims.claim(TYPE, {task: 1})) == 1
        yield worker


@pytest.mark.parametrize(("run", "published"), [(cancel, False), (cancel, True), (requeue, True), (claim, False)])
async def test_whoever_waited_for_the_lock_of_a_claim_sees_the_claim(bare: Scene, run: Run, published: bool) -> None:
    scene = bare
    (task,) = await scene.accepted()
    if published:
        await scene.confirm([task])
    async with being_claimed(scene, task) as worker:
        waiting = asyncio.ensure_future(run(scene, task))
        await scene.until_blocked()
    assert not await waiting
    assert await scene.state(task) == ("running", 2)
    assert [(row["task_id"], row["worker"]) for row in await scene.sql("SELECT * FROM claims")] == [
        (task, worker.worker.id)
    ]
    assert await scene.due(task) is None


async def test_a_cancel_takes_the_outbox_row_of_the_retry_that_it_waited_for(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    async with scene.direct.transaction():
        settling = Claims(Inside(scene.direct), worker.worker, SOURCE)
        assert (await scene.settle(settling, claim, RETRY)).written
        cancelling = asyncio.ensure_future(scene.tasks.cancel(claim.id, "default"))
        await scene.until_blocked()
    assert await cancelling
    assert (await scene.state(claim.id))[0] == "cancelled"
    assert await scene.due(claim.id) is None


async def test_a_late_success_takes_the_outbox_row_of_the_sweep_that_it_waited_for(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    async with scene.direct.transaction():
        assert (await Upkeep(Inside(scene.direct)).sweep(10, 1.0)).looked_at == 1
        settling = asyncio.ensure_future(scene.settle(worker, claim, succeeded(None)))
        await scene.until_blocked()
    assert (await settling)[:2] == (True, True)
    assert (await scene.state(claim.id))[0] == "succeeded"
    assert await scene.due(claim.id) is None
    await scene.upkeep.clear_suspects()


STALLED = """
CREATE FUNCTION width_bucket(uuid, uuid[]) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1);
    RETURN pg_catalog.width_bucket($1, $2);
END $$
"""
"""Statements find what belongs to an id by this function: they stop at their first row, with their snapshot taken."""


@pytest_asyncio.fixture
async def stalled(own_scene: Scene) -> Scene:
    """Statements stop with their snapshot taken and no row locked, until `direct` lets them go on."""
    for statement in (DISABLED, STALLED, "SELECT pg_advisory_lock(1)"):
        await own_scene.direct.execute(statement)
    return own_scene


async def go_on(scene: Scene) -> None:
    await scene.direct.execute("SELECT pg_advisory_unlock(1)")


@pytest.mark.parametrize("run", [take, expire, requeue])
async def test_whoever_began_before_a_claim_and_locks_after_it_sees_the_claim(stalled: Scene, run: Run) -> None:
    scene = stalled
    (task,) = await scene.accepted(grace=0.0)
    worker = await scene.worker()
    if run is expire:
        await scene.sql("UPDATE due SET expires_at = now() - interval '1 second'")
    if run is requeue:
        await Publishing(Inside(scene.direct), 0.0).confirm([Confirmation(task, 1, LOG, 0, 0)])
    waiting = asyncio.ensure_future(run(scene, task))
    await scene.until_blocked()
    assert len(await Claims(Inside(scene.direct), worker.worker, SOURCE).claim(TYPE, {task: 1})) == 1
    await go_on(scene)
    assert not await waiting
    assert await scene.state(task) == ("running", 2)
    assert await scene.claims() == {(task, 2)}
    assert await scene.due(task) is None


@pytest.mark.parametrize("run", [take, expire])
async def test_whoever_began_before_a_confirmation_and_locks_after_it_leaves_the_task(stalled: Scene, run: Run) -> None:
    scene = stalled
    (task,) = await scene.accepted(grace=0.0)
    if run is expire:
        await scene.sql("UPDATE due SET expires_at = now() - interval '1 second'")
    waiting = asyncio.ensure_future(run(scene, task))
    await scene.until_blocked()
    await Publishing(Inside(scene.direct), 0.0).confirm([Confirmation(task, 1, LOG, 0, 0)])
    await go_on(scene)
    assert not await waiting
    assert await scene.state(task) == ("queued", 1)


async def test_a_settlement_counts_only_with_its_claim(scene: Scene) -> None:
    claimed, waiting = await scene.accepted(2)
    owner, other = await scene.worker(), await scene.worker()
    (held,) = await owner.claim(TYPE, {claimed: 1})

    async def settle(worker: Claims, task: UUID, version: int) -> Any:
        (answer,) = await worker.settle_all([Settlement(task, version, succeeded(None))])
        return answer.written

    assert not await settle(other, claimed, held.version)
    assert not await settle(owner, waiting, 2)
    assert await scene.claims() == {(claimed, held.version)}
    assert await settle(owner, claimed, held.version)


async def test_a_claim_takes_the_outbox_row_with_it(scene: Scene) -> None:
    pending, published = await scene.accepted(2, grace=0.0)
    await scene.confirm([published])
    worker = await scene.worker()
    assert len(await worker.claim(TYPE, {pending: 1, published: 1})) == 2
    assert await scene.sql("SELECT FROM due") == []
    assert await scene.publishing.take(TYPE, 10) == []


async def test_a_confirmation_of_a_version_that_is_past_changes_nothing(scene: Scene) -> None:
    (task,) = await scene.accepted(grace=0.0)
    (again,) = await scene.publishing.take(TYPE, 10)
    await scene.confirm([task], version=1)
    assert await scene.due(task, dead=False) is not None
    _, published = await scene.upkeep.audit_page(UUID(int=0), 10)
    assert published == []
    await scene.confirm([task], version=again.version)
    _, published = await scene.upkeep.audit_page(UUID(int=0), 10)
    assert [(each.id, each.version) for each in published] == [(task, again.version)]
