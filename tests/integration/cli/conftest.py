from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from taskflux.local.servers import PostgresServer, ValkeyServer
from taskflux.store.settings import RedisSettings
from taskflux.stream.settings import KafkaSettings
from tests.conftest import NewDatabase, wait_for_the_disk
from tests.integration.cli.command import Command
from tests.integration.system import scripted
from tests.integration.system.stack import Stack, settings_for
from tests.workers import built_by_one_worker


# Ended before other tests read this process's metrics: two leaders would both show their figures there.
@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def stack(
    postgres: PostgresServer,
    new_database: NewDatabase,
    kafka_settings: KafkaSettings,
    valkey: ValkeyServer,
    servers_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Stack]:
    """A TaskFlux that the command is called against, apart from the other tests' by its topics' prefix."""
    built_by_one_worker("cli", tmp_path_factory)
    await wait_for_the_disk(postgres, "on")
    kafka = kafka_settings.model_copy(update={"topic_prefix": "cli-"})
    redis = RedisSettings.model_validate({"url": valkey.url})
    settings = settings_for(await new_database(), kafka, redis)
    directory = servers_dir / "cli-stack"
    directory.mkdir()
    stack = await Stack.create(settings, scripted.RUNNING, directory)
    parts = [stack.start(part) for part in ("ingest", "relay", "dlq-sink")]
    await asyncio.gather(*parts, *map(stack.start, scripted.RUNNING))
    yield stack
    await stack.close()
    await wait_for_the_disk(postgres, "off")


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def taskflux(stack: Stack) -> Command:
    """The command with the environment of that TaskFlux."""
    return Command.of(stack.settings)
