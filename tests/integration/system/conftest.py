from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from taskflux.local.servers import ValkeyServer
from taskflux.store.settings import RedisSettings
from taskflux.stream.settings import KafkaSettings
from taskflux.upkeep import measuring
from tests.conftest import NewDatabase
from tests.integration.system import frail, killers, scripted
from tests.integration.system.catastrophe import Catastrophe, happen
from tests.integration.system.fragile import Fragile
from tests.integration.system.scripted import WORLD, World
from tests.integration.system.stack import Stack, settings_for
from tests.workers import group_of

_GROUP = pytest.StashKey[str]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.session.stash[_GROUP] = group_of(item.nodeid)


def _to_come(session: pytest.Session) -> list[pytest.Function]:
    """The tests that run in this process."""
    items = [each for each in session.items if isinstance(each, pytest.Function)]
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return items
    return [item for item in items if group_of(item.nodeid) == session.stash[_GROUP]]


@pytest.fixture(scope="package")
def measured_at_once() -> Iterator[None]:
    """The leader reads its figures as often as it may: on a busy machine one slow read puts off the next by minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SHARE", 1.0)
        yield


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def stack(
    request: pytest.FixtureRequest,
    measured_at_once: None,
    new_database: NewDatabase,
    kafka_settings: KafkaSettings,
    valkey: ValkeyServer,
    servers_dir: Path,
) -> AsyncIterator[Stack]:
    """One TaskFlux for all of them; tests are apart by their task ids.

    What takes long and is asked for by a later test begins with it.
    """
    kafka = kafka_settings.model_copy(update={"topic_prefix": "system-"})
    redis = RedisSettings.model_validate({"url": valkey.url})
    directory = servers_dir / "stack"
    directory.mkdir()
    stack = await Stack.create(
        settings_for(await new_database(), kafka, redis),
        (*scripted.RUNNING, scripted.late, *frail.HANDLERS),
        directory,
    )
    services = [stack.start(part) for part in ("ingest", "relay", "dlq-sink")]
    await asyncio.gather(*services, *map(stack.start, scripted.RUNNING))
    wanted = {name for item in _to_come(request.session) for name in item.fixturenames}
    kinds = {
        "catastrophe": lambda: happen(stack),
        "fragile": lambda: Fragile.build(kafka_settings, stack.directory),
        "killers": lambda: killers.happen(stack),
    }
    for name in kinds.keys() & wanted:
        stack.begin(name, kinds[name])
    yield stack
    await stack.close()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def catastrophe(stack: Stack) -> Catastrophe:
    """Workers that were killed and halted in mid-task."""
    found: Catastrophe = await stack.begin("catastrophe", lambda: happen(stack))
    return found


@pytest_asyncio.fixture(scope="package", loop_scope="session", name="killers")
async def killed_workers(stack: Stack) -> dict[int, killers.Outcome]:
    """A task that kills its workers, and its neighbours, by how many workers there were."""
    found: dict[int, killers.Outcome] = await stack.begin("killers", lambda: killers.happen(stack))
    return found


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def fragile(stack: Stack, kafka_settings: KafkaSettings) -> AsyncIterator[Fragile]:
    """A TaskFlux whose servers a test may stop; they run again after the test."""
    fragile: Fragile = await stack.begin("fragile", lambda: Fragile.build(kafka_settings, stack.directory))
    yield fragile
    await fragile.close()


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """What the scripted handlers see; after the test the provider is available and the script `mended` fails again."""
    yield WORLD
    WORLD.away = None
    WORLD.mended = False
