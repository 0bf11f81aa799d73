"""The push scaler of a real relay, asked as KEDA asks it: over gRPC, by another implementation than its own."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import grpc
import pytest
import pytest_asyncio
import trustme
from uuid_utils.compat import uuid7

from taskflux.handlers.relay import relay
from taskflux.local.ports import free_port
from taskflux.store.database import Database
from taskflux.store.publishing import Circuits
from taskflux.store.settings import PostgresSettings
from taskflux.store.tasks import Tasks, TaskTypes
from taskflux.store.upkeep import Demand, Needed
from taskflux.stream.envelope import OutRecord
from taskflux.stream.producer import Producer
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import task_group, task_topic
from taskflux.tasks.model import Submission, TaskType
from taskflux.worker.process import Process
from taskflux.worker.settings import HttpSettings, RelaySettings, ScalerSettings, Settings
from tests.conftest import NewDatabase
from tests.integration.upkeep.keda import Keda, channel

TYPE, PROVIDER = "woken", "woken-provider"
PATIENCE = 30.0
_prefixes = itertools.count(1)


@dataclass
class Place:
    """Where a relay runs: its servers and its own port for KEDA."""

    settings: Settings
    database: Database

    @property
    def port(self) -> int:
        assert self.settings.scaler.port is not None
        return self.settings.scaler.port

    @property
    def prefix(self) -> str:
        return self.settings.kafka.topic_prefix

    def trigger(self, **more: object) -> dict[str, object]:
        return {
            "taskType": TYPE,
            "topic": task_topic(self.prefix, TYPE),
            "consumerGroup": task_group(self.prefix, TYPE),
            "lagThreshold": 2,
            "runningThreshold": 2,
            "maxReplicas": 12,
        } | more

    async def submit(self, number: int = 1, delay: float = 0.0) -> None:
        tasks = [Submission(uuid7(), TYPE, "{}", 8, delay=delay) for _ in range(number)]
        await Tasks(self.database).insert(tasks, 0.0)

    async def produce(self, number: int = 1) -> None:
        """As another producer, who writes to the topic of the type."""
        producer = Producer(self.settings.kafka)
        await producer.start()
        topic = task_topic(self.prefix, TYPE)
        await producer.publish([OutRecord(topic, str(each).encode(), b"{}") for each in range(number)])
        await producer.stop()

    @asynccontextmanager
    async def relay(self) -> AsyncIterator[Process]:
        process = Process("relay", self.settings)
        task = asyncio.create_task(relay.serve(process))
        async with asyncio.timeout(PATIENCE):
            while not process.health.started:
                if task.done():
                    task.result()
                await asyncio.sleep(0.02)
        try:
            yield process
        finally:
            process.drain()
            await task


@pytest_asyncio.fixture
async def place(new_database: NewDatabase, kafka_settings: KafkaSettings) -> AsyncIterator[Place]:
    postgres = await new_database()
    kafka = kafka_settings.model_copy(update={"topic_prefix": f"scaler{next(_prefixes)}-{free_port()}-"})
    settings = Settings(
        postgres=postgres.model_copy(update={"statement_timeout": 2.5, "connect_timeout": 1.0}),
        kafka=kafka,
        http=HttpSettings(host="127.0.0.1", port=free_port()),
        relay=RelaySettings(max_wait=0.1),
        scaler=ScalerSettings(port=free_port()),
    )
    database = Database(postgres)
    await database.open()
    await TaskTypes(database).register(TaskType(TYPE, "{}", 8, "resend", PROVIDER))
    await ensure_topics(kafka, [TYPE])
    yield Place(settings, database)
    await database.close()


@asynccontextmanager
async def keda(place: Place, **more: object) -> AsyncIterator[Keda]:
    """Once it has its first answer, as KEDA has before a task comes."""
    async with channel(place.port) as connected:
        asked = Keda(connected, place.trigger(**more))
        await asked.pods()
        yield asked


async def until(asked: Keda, pods: float) -> None:
    """Return once KEDA is told that number."""
    async with asyncio.timeout(PATIENCE):
        while await asked.pods() != pods:  # noqa: ASYNC110  # it is KEDA that polls
            await asyncio.sleep(0.1)


async def test_a_task_that_is_accepted_wakes_its_handler_within_a_second_and_again_each_second(place: Place) -> None:
    async with place.relay(), keda(place) as asked:
        assert await asked.metric_spec() == [("replicas", 1.0)]
        assert (await asked.is_active(), await asked.pods()) == (False, 0.0)
        stream = asked.stream()
        await place.submit(3)
        accepted = asyncio.get_running_loop().time()
        assert await stream.woken(PATIENCE) - accepted < 1.0
        await asyncio.sleep(3.5)
        assert sum(active for _, active in stream.said) >= 3
        assert await asked.is_active()
        await until(asked, 2.0)
        await stream.close()


async def test_another_producer_s_record_wakes_its_handler_within_a_second(place: Place) -> None:
    async with place.relay(), keda(place) as asked:
        stream = asked.stream()
        await place.produce()
        written = asyncio.get_running_loop().time()
        assert await stream.woken(PATIENCE) - written < 1.0
        await stream.close()


async def test_a_handler_without_a_type_is_woken_by_a_record_of_its_topic(place: Place) -> None:
    async with place.relay(), channel(place.port) as connected:
        sink = place.trigger()
        del sink["taskType"], sink["runningThreshold"]
        asked = Keda(connected, sink)
        assert await asked.pods() == 0
        stream = asked.stream()
        await place.produce(5)
        await stream.woken(PATIENCE)
        await until(asked, 2.0)  # two partitions, whatever the five records would need
        await stream.close()


async def test_a_task_wakes_its_handler_shortly_before_it_is_due(place: Place) -> None:
    place.settings.scaler.ahead_seconds = 1.0
    async with place.relay(), keda(place) as asked:
        stream = asked.stream()
        begun = asyncio.get_running_loop().time()
        await place.submit(delay=4.0)
        woken = await stream.woken(PATIENCE) - begun
        assert 2.5 < woken < 4.5
        await stream.close()


async def test_running_tasks_count_though_nothing_waits(place: Place) -> None:
    async with place.relay(), keda(place) as asked:
        await _claim(place, 3)
        await until(asked, 1.5)


async def test_an_open_circuit_leaves_no_pod_but_for_a_probe_that_runs(place: Place) -> None:
    await Circuits(place.database).open(PROVIDER, "Unavailable", "the test says so")
    async with place.relay(), keda(place) as asked:
        assert not await asked.is_active()
        await _claim(place, 5)
        await until(asked, 1.0)


async def test_what_should_have_been_published_counts_but_for_what_an_open_circuit_holds_back(place: Place) -> None:
    overdue = (
        "INSERT INTO due (task_id, dead, type, version, publish_at)"
        " SELECT gen_random_uuid(), $2, $1, 1, now() - interval '1 hour' FROM generate_series(1, $3)"
    )
    await _sql(place, overdue, TYPE, False, 3)
    await _sql(place, overdue, TYPE, True, 2)
    demand = Demand(place.database, 3.0)
    assert (await demand.read({None: 100}))[None].due == 5
    assert (await demand.read({None: 4}))[None].due >= 4
    assert (await demand.read({TYPE: 2}))[TYPE].due == 2
    await Circuits(place.database).open(PROVIDER, "Unavailable", "the test says so")
    assert (await demand.read({None: 100}))[None].due == 2
    assert (await demand.read({TYPE: 100}))[TYPE] == Needed(3, 0, True, True)


async def test_streams_end_with_ok_when_the_relay_drains(place: Place) -> None:
    async with channel(place.port) as connected, place.relay() as process:
        streams = [Keda(connected, place.trigger(maxReplicas=number)).stream() for number in range(1, 6)]
        await Keda(connected, place.trigger()).pods()
        process.drain()
        assert {await each.ended(5.0) for each in streams} == {grpc.StatusCode.OK}


async def test_every_relay_gives_the_same_answer(place: Place) -> None:
    other = Place(place.settings.model_copy(deep=True), place.database)
    other.settings.scaler.port, other.settings.http.port = free_port(), free_port()
    await place.produce(3)
    async with place.relay(), other.relay(), keda(place) as leader, keda(other) as follower:
        assert await leader.pods() == await follower.pods() == 2.0


async def test_an_unreachable_database_is_said_by_a_status_and_logged_once(
    place: Place, caplog: pytest.LogCaptureFixture, no_outages: None
) -> None:
    nowhere = PostgresSettings.model_validate({"dsn": f"postgresql://nobody@127.0.0.1:{free_port()}/none"})
    lost = Place(place.settings.model_copy(update={"postgres": nowhere}), place.database)
    caplog.set_level(logging.WARNING)
    async with lost.relay(), channel(lost.port) as connected:
        asked = Keda(connected, lost.trigger())
        stream = asked.stream()
        assert await asked.metric_spec() == [("replicas", 1.0)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asked.pods()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert stream.said == []
        said = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert len(said) <= 3, [each.getMessage() for each in said]
        await stream.close()


async def test_metadata_that_says_nothing_is_refused_with_a_sentence(place: Place) -> None:
    async with place.relay(), channel(place.port) as connected:
        with pytest.raises(grpc.aio.AioRpcError, match="lagThreshold, runningThreshold or dueThreshold") as refused:
            await Keda(connected, {"taskType": TYPE}).metric_spec()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_with_a_client_ca_only_a_client_of_that_ca_is_answered(place: Place, tmp_path: Path) -> None:
    ca = trustme.CA()
    server, client = ca.issue_cert("localhost"), ca.issue_cert("keda")
    server.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    pem = str(tmp_path / "server.pem")
    place.settings.scaler = ScalerSettings(
        port=place.port, tls_cert_file=pem, tls_key_file=pem, tls_client_ca_file=str(tmp_path / "ca.pem")
    )
    root = ca.cert_pem.bytes()
    chain = b"".join(each.bytes() for each in client.cert_chain_pems)
    known = grpc.ssl_channel_credentials(root, client.private_key_pem.bytes(), chain)
    async with place.relay():
        async with channel(place.port, known) as connected:
            assert await Keda(connected, place.trigger()).pods() == 0
        async with channel(place.port, grpc.ssl_channel_credentials(root)) as connected:
            with pytest.raises(grpc.aio.AioRpcError):
                await Keda(connected, place.trigger()).metric_spec()


async def _claim(place: Place, number: int) -> None:
    """Tasks that a worker runs, as the narrow table says it."""
    await _sql(
        place,
        "WITH mine AS (INSERT INTO workers (id, handler, label, pid)"
        " VALUES (gen_random_uuid(), 'process-woken', 'w', 1) RETURNING id)"
        " INSERT INTO claims (task_id, worker, type, version)"
        " SELECT gen_random_uuid(), mine.id, $1, 1 FROM mine, generate_series(1, $2)",
        TYPE,
        number,
    )


async def _sql(place: Place, statement: str, *arguments: object) -> None:
    direct = place.settings.postgres.migrate_dsn or place.settings.postgres.dsn
    connection = await asyncpg.connect(direct.get_secret_value())
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()
