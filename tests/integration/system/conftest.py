from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from handlers.local.servers import ValkeyServer
from handlers.store.settings import RedisSettings
from handlers.stream.settings import KafkaSettings
from tests.conftest import NewDatabase
from tests.integration.system.scripted import WORLD, World
from tests.integration.system.stack import Stack


@pytest_asyncio.fixture(scope="session")
async def stack(new_database: NewDatabase, kafka_settings: KafkaSettings, valkey: ValkeyServer) -> AsyncIterator[Stack]:
    """One TaskFlux for the session; tests are apart by their task ids."""
    kafka = kafka_settings.model_copy(update={"topic_prefix": "system-"})
    redis = RedisSettings.model_validate({"url": valkey.url})
    stack = await Stack.create(await new_database(), kafka, redis)
    await stack.start_all()
    yield stack
    await stack.close()


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """What the scripted handlers see; the provider is back and nothing is mended after the test."""
    yield WORLD
    WORLD.away = False
    WORLD.mended = False
