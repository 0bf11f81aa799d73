"""What the chart renders, run: each container in exactly its environment, with its arguments, against real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import asyncpg
import httpx
import pytest
import pytest_asyncio

from taskflux.local.ports import free_port
from taskflux.local.servers import Broker, PostgresServer, ValkeyServer
from taskflux.local.supervisor import Inbox
from tests.chart.containers import Outside
from tests.chart.installation import HANDLERS, OWN, Ways, inbox_in, installed, servers_for, write_application
from tests.chart.launching import ProcessLauncher, eventually, probed
from tests.chart.release import Part, Release
from tests.chart.rendering import render
from tests.chart.servers import MIXED_TOPIC, Servers
from tests.kafka.broker import KafkaBroker
from tests.keys import HEADERS

PREFIX: Final = "chart-"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def inbox(servers_dir: Path) -> AsyncIterator[Inbox]:
    async with inbox_in(servers_dir / "chart-inbox") as inbox:
        yield inbox


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def servers(
    postgres: PostgresServer, broker: Broker | KafkaBroker, valkey: ValkeyServer, inbox: Inbox
) -> AsyncIterator[Servers]:
    async with servers_for(postgres, broker, valkey, inbox, "chart") as servers:
        yield servers


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def release(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Release]:
    application = tmp_path_factory.mktemp("application")
    write_application(application)
    launcher = ProcessLauncher(tmp_path_factory.mktemp("containers"), cwd=application)
    async with installed(servers, PREFIX, launcher) as release:
        yield release


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def parts(release: Release) -> Mapping[str, Part]:
    """Every handler, called ready by its own probes."""
    return await release.start_all(*HANDLERS)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ways(parts: Mapping[str, Part], inbox: Inbox) -> AsyncIterator[Ways]:
    async with httpx.AsyncClient(base_url=parts["ingest"].url, trust_env=False, headers=HEADERS, timeout=20) as api:
        yield Ways(parts, api, inbox)


async def test_the_set_up_made_the_schema_and_every_topic(release: Release, servers: Servers) -> None:
    connection = await asyncpg.connect(servers.postgres)
    registered = {row["type"] for row in await connection.fetch("SELECT type FROM task_types")}
    await connection.close()
    assert registered == {"email", "sms", "simulated", OWN}


async def test_the_set_up_before_an_upgrade_finds_everything_done(release: Release) -> None:
    outputs = await release.hooks("pre-upgrade")
    assert "the schema is current" in "".join(outputs)
    assert "created" not in "".join(outputs)


async def test_every_handler_runs_as_rendered_and_answers_its_probes(parts: Mapping[str, Part]) -> None:
    assert parts.keys() == set(HANDLERS)
    for part in parts.values():
        for probe in ("livenessProbe", "readinessProbe"):
            response = await probed(part.container, part.running, probe)
            assert response.status_code == 200


async def test_every_handler_serves_its_metrics_at_the_pod_monitor_s_endpoint(parts: Mapping[str, Part]) -> None:
    async with httpx.AsyncClient(trust_env=False, headers=HEADERS) as client:
        for part in parts.values():
            text = (await client.get(f"{part.management}/metrics")).text
            assert "taskflux_build_info" in text, part.container.pod


async def test_no_pod_opens_more_connections_than_its_pool(parts: Mapping[str, Part], servers: Servers) -> None:
    connection = await asyncpg.connect(servers.postgres)
    rows = await connection.fetch(
        "SELECT application_name AS name, count(*) AS connections FROM pg_stat_activity"
        " WHERE datname = 'chart' AND pid <> pg_backend_pid() GROUP BY 1"
    )
    await connection.close()
    opened = {row["name"].partition("@")[0]: row["connections"] for row in rows}
    assert opened.keys() >= {"ingest", "relay", "router", "process-email"}, "the others connect when there is work"
    for handler, part in parts.items():
        allowed = int(part.container.environment["TASKFLUX_POSTGRES__POOL_SIZE"])
        assert opened.get(handler, 0) <= allowed, handler


async def test_the_pods_of_helm_test_succeed(release: Release, parts: Mapping[str, Part]) -> None:
    tests = [each for each in release.rendering.of("Pod") if "test" in each.hooks]
    assert tests
    for each in tests:
        assert "succeeded" in await release.to_the_end(each)


async def test_a_mail_arrives(ways: Ways) -> None:
    await ways.of_a_mail()


async def test_a_short_message_arrives(ways: Ways) -> None:
    await ways.of_a_short_message()


async def test_a_custom_handler_does_its_work(ways: Ways) -> None:
    await ways.of_an_own_task()


async def test_notify_delivers_at_once(ways: Ways) -> None:
    await ways.of_a_mail_at_once()


async def test_a_task_that_runs_keeps_its_pod(ways: Ways, release: Release, servers: Servers) -> None:
    scaled = release.rendering.handler("ScaledObject", "process-simulated")
    assert scaled is not None
    (query,) = (each["metadata"]["query"] for each in scaled.spec["triggers"] if each["type"] == "postgresql")
    connection = await asyncpg.connect(servers.postgres)
    task_id = await ways.sent("simulated", {"delayMs": 1500})

    async def running() -> bool:
        return bool(await connection.fetchval(query) == 1)

    await eventually(running, lambda: "one simulated task runs")
    await ways.succeeded(task_id)

    async def none() -> bool:
        return bool(await connection.fetchval(query) == 0)

    await eventually(none, lambda: "none runs any more")
    await connection.close()


async def test_pruning_as_scheduled_succeeds(release: Release, parts: Mapping[str, Part]) -> None:
    (prune,) = release.rendering.of("CronJob")
    assert "succeeded tasks deleted" in await release.to_the_end(prune)


async def test_the_topic_of_mixed_types_has_the_configured_name(parts: Mapping[str, Part]) -> None:
    assert parts["router"].container.environment["TASKFLUX_ROUTER__TOPIC"] == f"{PREFIX}{MIXED_TOPIC}"


async def test_every_pod_ends_within_its_grace_period(release: Release, parts: Mapping[str, Part]) -> None:
    """Last in this file: nothing runs any more after it."""
    await release.stop(*parts.values())
    assert all(part.running.returncode == 0 for part in parts.values())


async def test_the_set_up_waits_for_a_server_that_has_not_started_and_names_it(
    servers: Servers, tmp_path: Path
) -> None:
    values = servers.values("late-", ()) | {"setup": {"waitSeconds": 2}}
    nowhere = Outside({**servers.outside().secrets, "postgres": {"dsn": f"postgresql://x@127.0.0.1:{free_port()}/x"}})
    async with Release(render(values), nowhere, ProcessLauncher(tmp_path)) as release:
        with pytest.raises(AssertionError, match=r"(?s)waiting.*TASKFLUX_POSTGRES__DSN"):
            await release.hooks("pre-install")
