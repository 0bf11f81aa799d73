from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from taskflux.store.database import Database
from taskflux.store.settings import PostgresSettings
from tests.conftest import NewDatabase
from tests.integration.store.before import Before
from tests.integration.store.scene import Scene

EMPTY = """
DELETE FROM tasks; DELETE FROM parked; DELETE FROM due; DELETE FROM workers; DELETE FROM claims;
DELETE FROM suspects;
DELETE FROM idempotency_keys;
DELETE FROM task_types; DELETE FROM circuits; DELETE FROM dead_letters; DELETE FROM leaders;
DELETE FROM handler_images; DELETE FROM dead_letter_counts;
DELETE FROM foreign_tasks; DELETE FROM early_reports; DELETE FROM notifications; DELETE FROM bulk_replays;
"""


@pytest_asyncio.fixture(scope="session")
async def shared(new_database: NewDatabase) -> AsyncIterator[tuple[PostgresSettings, Database]]:
    """A database for all scenes, one after the other: a new one for each would take most of the time."""
    settings = await new_database()
    database = Database(settings, pool_size=8)
    await database.open()
    yield settings, database
    await database.close()


@pytest_asyncio.fixture
async def scene(shared: tuple[PostgresSettings, Database]) -> AsyncIterator[Scene]:
    """An empty store. However a test leaves its tasks, they got there by transitions that the table allows."""
    async with Scene.over(*shared) as scene:
        await scene.direct.execute(EMPTY)
        await scene.register("email")
        yield scene
        await scene.check_transitions()
        await scene.check_whereabouts()


@pytest_asyncio.fixture
async def own_scene(new_database: NewDatabase) -> AsyncIterator[Scene]:
    """A scene in a database of its own, for what the tables themselves go through."""
    settings = await new_database()
    async with Scene.of(settings, Database(settings, pool_size=8)) as scene:
        yield scene


@pytest.fixture
def before(scene: Scene) -> Before:
    """Processes of the release before on the same tables."""
    return Before(scene)
