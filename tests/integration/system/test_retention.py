"""`taskflux prune` and `taskflux audit`, on the servers of a running TaskFlux."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import pytest
from click.testing import CliRunner, Result
from uuid_utils.compat import uuid7

from taskflux.cli import main
from taskflux.store.database import Database
from taskflux.store.publishing import Confirmation, Publishing
from taskflux.store.tasks import TaskTypes
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from taskflux.tasks.model import TaskType
from tests.conftest import NewDatabase
from tests.integration.store.rows import old_tasks, sql, submit


@dataclass
class Servers:
    """A database and a broker without any process of TaskFlux, and how the command finds them."""

    database: Database
    kafka: KafkaSettings
    environment: Mapping[str, str]

    async def call(self, *arguments: str) -> Result:
        """Run the command as a shell would."""
        return await asyncio.to_thread(CliRunner().invoke, main, list(arguments), env=dict(self.environment))


@pytest.fixture
async def servers(new_database: NewDatabase, kafka_settings: KafkaSettings) -> AsyncIterator[Servers]:
    postgres = await new_database()
    database = Database(postgres, pool_size=2)
    await database.open()
    kafka = kafka_settings.model_copy(update={"topic_prefix": f"retention-{uuid7().hex[-8:]}-"})
    environment = {
        "TASKFLUX_POSTGRES__DSN": postgres.dsn.get_secret_value(),
        "TASKFLUX_POSTGRES__POOLER": str(postgres.pooler),
        "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "TASKFLUX_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
    }
    yield Servers(database, kafka, environment)
    await database.close()


async def test_prune_reports_what_it_deleted_or_with_a_dry_run_would_delete(servers: Servers) -> None:
    await old_tasks(servers.database, "succeeded", timedelta(days=60), 3)
    dry = await servers.call("prune", "--succeeded", "30d", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "3 succeeded tasks would be deleted" in dry.output
    assert "1 partition would be dropped" in dry.output
    done = await servers.call("prune", "--succeeded", "30d", "--json")
    assert json.loads(done.output) | {"partitions": []} == {
        "dryRun": False,
        "tasks": {"succeeded": 3, "dead": 0, "cancelled": 0},
        "partitions": [],
        "moved": 0,
        "deadLetters": 0,
        "trouble": [],
    }
    assert len(json.loads(done.output)["partitions"]) == 1
    assert await sql(servers.database, "SELECT FROM tasks") == []


async def test_prune_refuses_an_age_below_the_topics_retention(servers: Servers) -> None:
    refused = await servers.call("prune", "--succeeded", "3d")
    assert refused.exit_code == 1
    assert "TASKFLUX_KAFKA__RETENTION_HOURS, 96 hours" in refused.output
    assert (await servers.call("prune")).exit_code == 2


async def test_audit_has_lost_records_published_again(servers: Servers) -> None:
    await TaskTypes(servers.database).register(TaskType("simulated", "{}", 8, "resend", None))
    await ensure_topics(servers.kafka, ["simulated"])
    tasks = await submit(servers.database, 3)
    nothing = await servers.call("audit")
    assert (nothing.exit_code, "nothing was requeued" in nothing.output) == (0, True)
    lost = [Confirmation(task, 1, uuid7(), 0, 0) for task in tasks]  # in a log that no longer exists
    await Publishing(servers.database, 10.0).confirm(lost)
    audited = await servers.call("audit", "--json")
    assert json.loads(audited.output) == {"requeued": {"simulated": 3}}
    assert len(await sql(servers.database, "SELECT FROM task_states WHERE state = 'scheduled'")) == 3


async def test_without_postgres_the_status_says_that_it_is_worth_another_try(servers: Servers) -> None:
    away = {**servers.environment, "TASKFLUX_POSTGRES__DSN": "postgresql://nobody@127.0.0.1:1/nothing"}
    result = await Servers(servers.database, servers.kafka, away).call("prune", "--dead", "90d")
    assert result.exit_code == 3
