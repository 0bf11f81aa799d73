from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from handlers.stream.settings import KafkaSettings
from tests.conftest import NewDatabase
from tests.integration.tracing.scene import Scene


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group("tracing"))


@pytest_asyncio.fixture(scope="session")
async def scene(new_database: NewDatabase, kafka_settings: KafkaSettings, servers_dir: Path) -> AsyncIterator[Scene]:
    """One for the session; tests are apart by their traces."""
    directory = servers_dir / "tracing"
    directory.mkdir()
    scene, closing = await Scene.build(await new_database(), kafka_settings, directory)
    async with closing:
        yield scene
