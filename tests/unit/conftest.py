from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from taskflux.store.settings import PostgresSettings
from tests.conftest import NewDatabase
from tests.integration.store.conftest import EMPTY
from tests.integration.store.scene import Scene
from tests.unit.spans import Spans, recorded
from tests.unit.world import WatchedDatabase


@pytest_asyncio.fixture(scope="session")
async def watched(new_database: NewDatabase) -> AsyncIterator[tuple[PostgresSettings, WatchedDatabase]]:
    """A clone of the migrated template for all tests of the core: emptied, it is as good as another, in a tenth."""
    settings = await new_database()
    database = WatchedDatabase(settings, pool_size=4)
    await database.open()
    yield settings, database
    await database.close()


@pytest_asyncio.fixture
async def scene(watched: tuple[PostgresSettings, WatchedDatabase]) -> AsyncIterator[Scene]:
    """An empty store, whose database is a `WatchedDatabase`.

    However a test leaves its tasks, they got there by transitions that the table allows, and somebody will find them.
    """
    settings, database = watched
    async with Scene.over(settings, database) as scene:
        await scene.direct.execute(EMPTY)
        database.reset()
        await scene.register("email")
        yield scene
        await scene.check_transitions()
        await scene.check_whereabouts()


@pytest_asyncio.fixture
async def own_scene(new_database: NewDatabase) -> AsyncIterator[Scene]:
    """A scene in a database of its own, a `WatchedDatabase`."""
    settings = await new_database()
    async with Scene.of(settings, WatchedDatabase(settings, pool_size=4)) as scene:
        yield scene


@pytest.fixture
def spans() -> Iterator[Spans]:
    """What is recorded meanwhile, of one half of the traces that nobody has decided about."""
    with recorded(ratio=0.5) as spans:
        yield spans
