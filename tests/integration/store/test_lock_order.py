"""Batches lock their rows in the order of the ids, so that no two of them wait for each other in a circle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import pytest
import pytest_asyncio
from uuid_utils.compat import uuid7

from taskflux.store.claims import Settlement
from taskflux.store.database import Database
from taskflux.store.publishing import Confirmation
from taskflux.store.upkeep import Published
from tests.conftest import NewDatabase
from tests.integration.store.scene import LOG, TYPE, Scene, submission, succeeded

COUNT = 9
Batch = Callable[[Scene, list[UUID]], Awaitable[Callable[[], Awaitable[object]]]]


@pytest_asyncio.fixture
async def unordered(new_database: NewDatabase) -> AsyncIterator[Scene]:
    """A scene whose planner reads rows of an analyzed table as they lie there: an index would sort them by chance.

    Our connections rule out all other scans, so that the cost decides among them: of one page, that is least.
    """
    settings = await new_database()
    database = Database(settings, pool_size=4)
    async with Scene.over(settings, database) as scene:
        (row,) = await scene.sql("SELECT current_database() AS name")
        await scene.direct.execute(f"ALTER DATABASE {row['name']} SET enable_indexscan = off")
        await database.open()
        await scene.register(TYPE)
        yield scene
        await database.close()


async def claim(scene: Scene, tasks: list[UUID]) -> Callable[[], Awaitable[object]]:
    worker = await scene.worker()
    return lambda: worker.claim(TYPE, dict.fromkeys(tasks, 1))


async def settle(scene: Scene, tasks: list[UUID]) -> Callable[[], Awaitable[object]]:
    worker = await scene.worker()
    claims = await worker.claim(TYPE, dict.fromkeys(tasks, 1))
    return lambda: worker.settle_all([Settlement(each.id, each.version, succeeded(None)) for each in claims])


async def requeue(scene: Scene, tasks: list[UUID]) -> Callable[[], Awaitable[object]]:
    await scene.confirm(tasks)
    return lambda: scene.upkeep.requeue([Published(task, TYPE, 1, LOG, 0, 1) for task in tasks], 1e6)


@pytest.mark.parametrize("batch", [claim, settle, requeue])
async def test_a_batch_that_waits_for_a_row_holds_those_before_it_and_none_behind(
    batch: Batch, unordered: Scene
) -> None:
    scene = unordered
    tasks = sorted(uuid7() for _ in range(COUNT))
    for task in reversed(tasks):  # so that they lie in the table the other way round
        await scene.tasks.insert([submission(id=task)], 15.0)
    await scene.direct.execute("ANALYZE tasks")
    run = await batch(scene, tasks)
    middle = tasks[COUNT // 2]
    async with scene.direct.transaction():
        await scene.direct.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", middle)
        waiting = asyncio.ensure_future(run())
        await scene.until_blocked()
        free = await scene.sql("SELECT id FROM tasks ORDER BY id FOR UPDATE SKIP LOCKED")
    await waiting
    assert [row["id"] for row in free] == tasks[COUNT // 2 :]


async def test_a_confirmation_waits_for_nothing(scene: Scene) -> None:
    """It takes no lock of a task, so it may not wait for whoever holds one and is about to take its outbox row."""
    one, other = await scene.accepted(2)
    holder = scene.direct.transaction()
    await holder.start()
    await scene.direct.execute("DELETE FROM due WHERE task_id = $1", one)
    await scene.direct.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", other)
    async with asyncio.timeout(10):
        await scene.publishing.confirm([Confirmation(task, 1, LOG, 0, 1) for task in (one, other)])
    await holder.rollback()
    assert await scene.state(one) == ("scheduled", 1)
    assert await scene.state(other) == ("queued", 1)


async def test_the_leases_of_a_former_run_are_locked_in_order(unordered: Scene) -> None:
    """As the leader does, which ends leases at the same time."""
    scene = unordered
    workers = sorted([(await scene.worker(origin="/data")).worker.id for _ in range(COUNT)])
    await scene.sql("CREATE TEMPORARY TABLE former AS SELECT * FROM workers")
    await scene.sql("DELETE FROM workers")
    await scene.sql("INSERT INTO workers SELECT * FROM former ORDER BY id DESC")
    async with scene.direct.transaction():
        await scene.direct.execute("SELECT FROM workers WHERE id = $1 FOR UPDATE", workers[COUNT // 2])
        waiting = asyncio.ensure_future(scene.upkeep.end_leases_of("/data"))
        await scene.until_blocked()
        free = await scene.sql("SELECT id FROM workers ORDER BY id FOR UPDATE SKIP LOCKED")
    assert await waiting == COUNT
    assert [row["id"] for row in free] == workers[COUNT // 2 :]
