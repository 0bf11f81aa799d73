"""The leader's figures while a server is away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from uuid_utils.compat import uuid7

from handlers.local.ports import free_port
from handlers.runtime import metrics
from handlers.runtime.instruments import Snapshot
from handlers.runtime.measuring import Measuring
from handlers.runtime.settings import Settings
from handlers.store.database import Database
from handlers.store.settings import PostgresSettings
from handlers.store.task_types import TaskTypes
from handlers.store.tasks import Tasks
from handlers.stream.positions import Positions
from handlers.stream.provision import ensure_topics
from handlers.stream.settings import KafkaSettings
from handlers.tasks.submission import Submission, TaskType
from tests.conftest import NewDatabase

TYPE = "measured"


def shown(snapshot: Snapshot) -> dict[tuple[str, ...], float]:
    (family,) = snapshot.collect()
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


@pytest.fixture(autouse=True)
def no_figures() -> Iterator[None]:
    yield
    for snapshot in metrics.LED:
        snapshot.clear()


@pytest_asyncio.fixture
async def database(new_database: NewDatabase) -> AsyncIterator[Database]:
    """One task of a registered type is due, two are due later."""
    database = Database(await new_database())
    await database.open()
    await TaskTypes(database).register(TaskType(TYPE, "{}", 8, "resend", "outside"))
    await Tasks(database).insert([Submission(uuid7(), TYPE, "{}", 8)], 0.0)
    await Tasks(database).insert([Submission(uuid7(), TYPE, "{}", 8, delay=60.0) for _ in range(2)], 0.0)
    yield database
    await database.close()


def measuring(database: Database, kafka: KafkaSettings) -> tuple[Measuring, Positions]:
    positions = Positions(kafka)
    return Measuring(Settings(kafka=kafka), database, positions), positions


def away(kafka: KafkaSettings) -> KafkaSettings:
    return kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{free_port()}", "request_timeout": 0.5})


async def test_while_kafka_is_away_there_is_a_gap_in_the_lag_alone(
    database: Database, kafka_settings: KafkaSettings
) -> None:
    measure, positions = measuring(database, away(kafka_settings))
    await measure.measure()
    assert shown(metrics.KAFKA_LAG) == {}
    assert shown(metrics.DEPTH) == {
        (TYPE, "due"): 1,
        (TYPE, "scheduled"): 2,
        (TYPE, "running"): 0,
        (TYPE, "dead-due"): 0,
    }
    assert shown(metrics.WORKERS) == {(TYPE,): 0}
    assert shown(metrics.CIRCUIT_OPEN) == {("outside",): 0}
    assert shown(metrics.TYPE_INFO) == {(TYPE, "outside"): 1}
    assert 0 < shown(metrics.OLDEST)[TYPE,] < 60
    assert shown(metrics.MEASURED)[()] > 1.7e9
    await positions.close()


async def test_while_postgresql_is_away_the_lag_is_still_told(
    database: Database, kafka_settings: KafkaSettings
) -> None:
    kafka = kafka_settings.model_copy(update={"topic_prefix": "measuring-"})
    await ensure_topics(kafka, [TYPE])
    measure, positions = measuring(database, kafka)
    await measure.measure()
    lag = {(TYPE, f"measuring-tasks.{TYPE}", f"measuring-taskflux.{TYPE}"): 0.0}
    assert lag.items() <= shown(metrics.KAFKA_LAG).items()
    await database.close()
    measure._read_again = 0.0  # its share of the time has passed
    await measure.measure()
    assert lag.items() <= shown(metrics.KAFKA_LAG).items()
    for snapshot in (metrics.DEPTH, metrics.OLDEST, metrics.WORKERS, metrics.MEASURED):
        assert shown(snapshot) == {}
    await positions.close()


async def test_postgresql_is_asked_again_only_after_fifty_times_as_long(
    database: Database, kafka_settings: KafkaSettings
) -> None:
    measure, positions = measuring(database, away(kafka_settings))
    await measure.measure()
    first = shown(metrics.MEASURED)
    measure._read_again += 3600.0
    await measure.measure()
    assert shown(metrics.MEASURED) == first
    await positions.close()


async def test_a_database_that_cannot_be_reached_stops_no_measuring(kafka_settings: KafkaSettings) -> None:
    dsn = {"dsn": f"postgresql://nobody@127.0.0.1:{free_port()}/none", "connect_timeout": 1.0}
    database = Database(PostgresSettings.model_validate(dsn))
    await database.open()
    measure, positions = measuring(database, away(kafka_settings))
    await measure.measure()
    assert shown(metrics.DEPTH) == shown(metrics.KAFKA_LAG) == {}
    await positions.close()
    await database.close()
