"""The leader's figures while a server is unreachable.

Another leader of the same process may show its own meanwhile: what is asked for here is of a type that only this has.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from uuid_utils.compat import uuid7

from taskflux.local.ports import free_port
from taskflux.store.database import Database, Row, Statement
from taskflux.store.settings import PostgresSettings
from taskflux.store.tasks import Tasks, TaskTypes
from taskflux.stream.positions import Positions
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from taskflux.tasks.model import Submission, TaskType
from taskflux.telemetry import metrics
from taskflux.telemetry.instruments import Snapshot
from taskflux.upkeep.measuring import Measuring
from taskflux.worker.settings import Settings
from tests.conftest import NewDatabase

TYPE, PROVIDER = "measured", "measured-provider"
TRIES = 20


class Remembering(Database):
    """Remembers which statements it ran."""

    def __init__(self, settings: PostgresSettings) -> None:
        super().__init__(settings)
        self.ran: list[str] = []

    async def fetch(self, statement: Statement, /, **arguments: object) -> Sequence[Row]:
        self.ran.append(statement.name)
        return await super().fetch(statement, **arguments)


def shown(*snapshots: Snapshot) -> dict[tuple[str, ...], float]:
    """The series of ours."""
    return {
        tuple(sample.labels.values()): sample.value
        for snapshot in snapshots
        for family in snapshot.collect()
        for sample in family.samples
        if {TYPE, PROVIDER} & set(sample.labels.values())
    }


async def figures(measuring: Measuring, *snapshots: Snapshot) -> dict[tuple[str, ...], float]:
    """Our figures after a measurement, unless those of others have replaced them each time."""
    for _ in range(TRIES):
        measuring._read_again = 0.0  # its share of the time has passed
        await measuring.measure()
        if found := shown(*snapshots):
            return found
    raise AssertionError("it shows nothing")


@pytest_asyncio.fixture
async def database(new_database: NewDatabase) -> AsyncIterator[Remembering]:
    """One task of a registered type is due, two are due later."""
    database = Remembering(await new_database())
    await database.open()
    await TaskTypes(database).register(TaskType(TYPE, "{}", 8, "resend", PROVIDER))
    await Tasks(database).insert([Submission(uuid7(), TYPE, "{}", 8)], 0.0)
    await Tasks(database).insert([Submission(uuid7(), TYPE, "{}", 8, delay=60.0) for _ in range(2)], 0.0)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def unreachable(kafka_settings: KafkaSettings) -> AsyncIterator[Positions]:
    """Of an unreachable Kafka."""
    settings = {"bootstrap_servers": f"127.0.0.1:{free_port()}", "request_timeout": 0.2}
    positions = Positions(kafka_settings.model_copy(update=settings))
    yield positions
    await positions.close()


async def test_while_kafka_is_unreachable_only_the_lag_is_missing(database: Database, unreachable: Positions) -> None:
    measuring = Measuring(Settings(), database, unreachable)
    assert await figures(measuring, metrics.DEPTH) == {
        (TYPE, "due"): 1,
        (TYPE, "scheduled"): 2,
        (TYPE, "running"): 0,
        (TYPE, "dead-due"): 0,
    }
    assert shown(metrics.KAFKA_LAG, metrics.PARTITIONS) == {}
    assert await figures(measuring, metrics.WORKERS) == {(TYPE,): 0}
    assert await figures(measuring, metrics.CIRCUIT_OPEN) == {(PROVIDER,): 0}
    assert await figures(measuring, metrics.TYPE_INFO) == {(TYPE, PROVIDER): 1}
    oldest = await figures(measuring, metrics.OLDEST)
    assert 0 < oldest[TYPE,] < 60


async def test_a_new_leader_knows_how_long_the_oldest_record_has_waited(
    database: Database, kafka_settings: KafkaSettings
) -> None:
    kafka = kafka_settings.model_copy(update={"topic_prefix": "waiting-"})
    await ensure_topics(kafka, [TYPE])
    writer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await writer.start()
    written = time.time() - 700.0
    await writer.send_and_wait(f"waiting-tasks.{TYPE}", b"{}", timestamp_ms=int(written * 1000))
    await writer.stop()
    for _ in range(2):
        positions = Positions(kafka)
        oldest = await figures(Measuring(Settings(kafka=kafka), database, positions), metrics.OLDEST)
        assert oldest[TYPE,] == pytest.approx(time.time() - written, abs=1.0)
        await positions.close()


async def test_while_postgresql_is_unreachable_the_lag_is_still_shown(
    database: Database, kafka_settings: KafkaSettings
) -> None:
    kafka = kafka_settings.model_copy(update={"topic_prefix": "measuring-"})
    await ensure_topics(kafka, [TYPE])
    positions = Positions(kafka)
    measuring = Measuring(Settings(kafka=kafka), database, positions)
    lag = {(TYPE, f"measuring-tasks.{TYPE}", f"measuring-taskflux.{TYPE}"): 0.0}
    assert await figures(measuring, metrics.KAFKA_LAG) == lag
    await database.close()
    assert await figures(measuring, metrics.KAFKA_LAG) == lag
    assert shown(metrics.DEPTH, metrics.OLDEST, metrics.WORKERS, metrics.CIRCUIT_OPEN) == {}
    await positions.close()


async def test_postgresql_is_asked_again_only_once_its_share_of_the_time_allows_it(
    database: Remembering, unreachable: Positions
) -> None:
    measuring = Measuring(Settings(), database, unreachable)
    await measuring.measure()
    measuring._read_again += 3600.0  # as after a measurement that took long
    await measuring.measure()
    assert database.ran.count("measure_tasks") == 1


async def test_an_unreachable_database_does_not_stop_measuring(unreachable: Positions) -> None:
    dsn = {"dsn": f"postgresql://nobody@127.0.0.1:{free_port()}/none", "connect_timeout": 1.0}
    database = Database(PostgresSettings.model_validate(dsn))
    await database.open()
    await Measuring(Settings(), database, unreachable).measure()
    assert shown(*metrics.LED) == {}
    await database.close()
