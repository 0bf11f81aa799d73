"""The image as the chart deploys it: each container under its own security context, and tasks all the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from taskflux.local.console import Trouble
from taskflux.local.servers import Broker, PostgresServer, ValkeyServer
from taskflux.local.supervisor import Inbox
from tests.chart import tools
from tests.chart.installation import HANDLERS, OWN, Ways, inbox_in, installed, servers_for, write_application
from tests.chart.release import Part, Release
from tests.image.engine import CHART, Engine
from tests.image.pods import ContainerLauncher, confinement
from tests.kafka.broker import KafkaBroker
from tests.keys import HEADERS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def own_image(engine: Engine, image: str, servers_dir: Path) -> str:
    """An application's image on top of ours, as one would write it."""
    directory = servers_dir / "application"
    write_application(directory)
    (directory / "Dockerfile").write_text(f"FROM {image}\nCOPY my_app /app/my_app\n")
    name = f"localhost/taskflux-test-own:{image.rpartition(':')[2]}"
    engine.do("build", "--tag", name, str(directory), timeout=300)
    return name


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def inbox(servers_dir: Path) -> AsyncIterator[Inbox]:
    async with inbox_in(servers_dir / "image-inbox") as inbox:
        yield inbox


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def release(
    engine: Engine,
    image: str,
    own_image: str,
    postgres: PostgresServer,
    broker: Broker | KafkaBroker,
    valkey: ValkeyServer,
    inbox: Inbox,
    servers_dir: Path,
) -> AsyncIterator[Release]:
    try:
        tools.helm()
    except Trouble as trouble:
        pytest.skip(str(trouble))
    images = {"image": reference(image), "handlers": {OWN: {"image": reference(own_image)}}}
    async with servers_for(postgres, broker, valkey, inbox, "image") as servers:
        with ContainerLauncher(engine, servers_dir / "mounts") as launcher:
            async with installed(servers, "image-", launcher, images) as release:
                yield release


def reference(image: str) -> Mapping[str, str]:
    """An image's name as values have it."""
    name, _, tag = image.rpartition(":")
    registry, _, repository = name.partition("/")
    return {"registry": registry, "repository": repository, "tag": tag}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def parts(release: Release) -> Mapping[str, Part]:
    """Every handler, called ready by its own probes."""
    return await release.start_all(*HANDLERS)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ways(parts: Mapping[str, Part], inbox: Inbox) -> AsyncIterator[Ways]:
    async with httpx.AsyncClient(base_url=parts["ingest"].url, trust_env=False, headers=HEADERS, timeout=30) as api:
        yield Ways(parts, api, inbox)


async def test_every_handler_runs_confined_as_the_other_tests_of_the_image_are(parts: Mapping[str, Part]) -> None:
    assert parts.keys() == set(HANDLERS)
    for part in parts.values():
        own = confinement(part.container)
        assert replace(own, memory=CHART.memory, tmpfs=CHART.tmpfs) == CHART, str(part.container.pod)
        assert own.tmpfs.keys() == CHART.tmpfs.keys()


async def test_a_mail_goes_all_the_way(ways: Ways) -> None:
    await ways.of_a_mail()


async def test_a_mail_goes_at_once(ways: Ways) -> None:
    await ways.of_a_mail_at_once()


async def test_a_short_message_goes_all_the_way(ways: Ways) -> None:
    await ways.of_a_short_message()


async def test_a_simulated_task_goes_all_the_way(ways: Ways) -> None:
    await ways.of_a_simulated_task()


async def test_a_task_of_an_application_s_own_image_goes_all_the_way(ways: Ways) -> None:
    await ways.of_an_own_task()


async def test_the_pods_of_helm_test_succeed(release: Release, parts: Mapping[str, Part]) -> None:
    for each in release.rendering.of("Pod"):
        assert "succeeded" in await release.to_the_end(each)


async def test_pruning_succeeds(release: Release, parts: Mapping[str, Part]) -> None:
    (prune,) = release.rendering.of("CronJob")
    assert "succeeded tasks deleted" in await release.to_the_end(prune)


async def test_the_set_up_before_an_upgrade_finds_everything_done(release: Release) -> None:
    assert "the schema is current" in "".join(await release.hooks("pre-upgrade"))


async def test_every_container_ends_within_its_grace_period(release: Release, parts: Mapping[str, Part]) -> None:
    """Last in this file: nothing runs any more after it."""
    await release.stop(*parts.values())
