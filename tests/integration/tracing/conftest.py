from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from taskflux.stream.settings import KafkaSettings
from tests.conftest import NewDatabase
from tests.integration.tracing.scene import Scene
from tests.workers import built_by_one_worker


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def scene(
    new_database: NewDatabase,
    kafka_settings: KafkaSettings,
    servers_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Scene]:
    """One for all of them; tests are apart by their traces."""
    built_by_one_worker("tracing", tmp_path_factory)
    directory = servers_dir / "tracing"
    directory.mkdir()
    scene, closing = await Scene.build(await new_database(), kafka_settings, directory)
    async with closing:
        yield scene
