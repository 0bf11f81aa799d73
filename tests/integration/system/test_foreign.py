"""Tasks of other producers: accepted once, however often Kafka delivers them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from taskflux import Receipt, Task, handler
from taskflux.store.dead_letters import DeadLetterFilter, DeadLetters
from taskflux.store.tasks import SQL, ForeignTask, Tasks, TaskTypes
from taskflux.stream.envelope import OutRecord
from taskflux.stream.positions import Positions
from taskflux.stream.producer import Producer, Published
from taskflux.stream.topics import router_group, task_group, task_topic
from taskflux.tasks.model import TaskType
from taskflux.worker.loading import load
from taskflux.worker.process import Process
from taskflux.worker.settings import RouterSettings
from taskflux.worker.worker import service_of
from tests.integration.system.scripted import QUICK, Script, World, act
from tests.integration.system.stack import Stack, eventually

MIXED = "system-task-topic"


@handler("foreign", payload=Script, retry=QUICK, concurrency=50)
async def foreign(task: Task[Script]) -> Receipt:
    return await act(task)


class Elsewhere:
    """Another producer, and what became of its records."""

    def __init__(self, stack: Stack, producer: Producer) -> None:
        self.stack = stack
        self.prefix = stack.settings.kafka.topic_prefix
        self.topic = task_topic(self.prefix, "foreign")
        self._producer = producer

    async def produce(self, value: dict[str, Any] | bytes, topic: str | None = None) -> None:
        """Kafka has the record."""
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        [outcome] = await self._producer.publish([OutRecord(topic or self.topic, None, raw, (("by", b"\xff"),))])
        assert isinstance(outcome, Published), outcome

    async def task(self, name: str, task_type: str = "foreign") -> UUID:
        """The task that a producer's id has become."""
        identity = f"id:{task_type}:{name}"

        async def adopted() -> UUID | None:
            rows = await self.stack.database.fetch(SQL["find_foreign"], identities=[identity])
            return rows[0]["task_id"] if rows else None

        task: UUID = await eventually(adopted, f"{name} is accepted")
        return task

    async def letter(self, value: bytes) -> Any:
        """The dead letter that holds these bytes."""
        table = DeadLetters(self.stack.database)

        async def there() -> Any:
            letters = await table.page("default", DeadLetterFilter(), None, None, 1000)
            full = [await table.get("default", each["id"]) for each in letters if each["task_id"] is None]
            return next((each for each in full if each is not None and each["record_value"] == value), None)

        return await eventually(there, "the record is a dead letter")

    async def forget_offsets(self, group: str, topic: str) -> None:
        """The group reads the topic from its start, as when its offsets have expired."""
        kafka = self.stack.settings.kafka
        consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, group_id=group, enable_auto_commit=False)
        await consumer.start()
        try:
            places = [TopicPartition(topic, number) for number in range(kafka.partitions)]
            consumer.assign(places)
            await consumer.commit(dict.fromkeys(places, 0))
        finally:
            await consumer.stop()


@pytest_asyncio.fixture(scope="module")
async def elsewhere(stack: Stack) -> AsyncIterator[Elsewhere]:
    await stack.start(foreign)
    producer = Producer(stack.settings.kafka)
    await producer.start()
    elsewhere = Elsewhere(stack, producer)

    async def takes() -> bool:
        [outcome] = await producer.publish([OutRecord(elsewhere.topic, None, b'{"taskType":"foreign","payload":{}}')])
        return isinstance(outcome, Published)

    await eventually(takes, "the topic is there")
    yield elsewhere
    await producer.stop()
    await stack.stop("foreign")


def record(name: str | None = None, **payload: Any) -> dict[str, Any]:
    named = {} if name is None else {"taskId": name}
    return {**named, "taskType": "foreign", "payload": payload}


async def test_another_producers_record_is_a_task_that_runs_once(elsewhere: Elsewhere, world: World) -> None:
    name = str(uuid4())
    for _ in range(3):
        await elsewhere.produce(record(name, script=["transient", "succeed"]))
    task = await elsewhere.task(name)
    shown = await elsewhere.stack.until(task, "succeeded")
    assert (shown["taskType"], shown["payload"]) == ("foreign", {"script": ["transient", "succeed"]})
    assert (shown["maxAttempts"], shown["attempts"]) == (4, 2)
    assert shown["timeline"][0]["note"] == "from another producer"
    assert len(shown["traceId"]) == 32
    assert task.version == 7
    assert world.effects(task) == 2


async def test_offsets_that_expired_make_no_second_task(elsewhere: Elsewhere, world: World) -> None:
    stack, secret = elsewhere.stack, uuid4().hex
    await elsewhere.produce(record(secret=secret))  # the record has no id
    last = str(uuid4())
    await elsewhere.produce(record(last))
    await stack.until(await elsewhere.task(last), "succeeded")

    async def made() -> int:
        return sum(world.effects(task) for task in world.attempts)

    await stack.stop("foreign")
    before, runs = len(await known(stack)), await made()
    await elsewhere.forget_offsets(task_group(elsewhere.prefix, "foreign"), elsewhere.topic)
    await stack.start(foreign)
    behind = str(uuid4())
    await elsewhere.produce(record(behind, marker=1))
    await stack.until(await elsewhere.task(behind), "succeeded")

    async def read_again() -> bool:
        return await lag(stack, "foreign") == 0

    await eventually(read_again, "everything was read again")
    assert len(await known(stack)) == before + 1
    assert await made() == runs + 1


async def test_the_fields_of_a_record_mean_what_they_mean_over_http(elsewhere: Elsewhere, world: World) -> None:
    stack, later, soon, late = elsewhere.stack, str(uuid4()), str(uuid4()), str(uuid4())
    fields = {"maxAttempts": 2, "key": "customer 7", "metadata": {"order": 12}}
    for _ in range(2):  # a redelivery runs none of them early
        await elsewhere.produce(record(later) | fields | {"scheduleAt": "2031-01-31T09:00:00Z"})
        await elsewhere.produce(record(soon) | fields | {"delaySeconds": 1.5})
        await elsewhere.produce(record(late) | fields | {"expiresAt": "2020-01-31T09:00:00Z"})
    await elsewhere.produce(record(last := str(uuid4())))
    await stack.until(await elsewhere.task(last), "succeeded")
    scheduled = await stack.until(await elsewhere.task(later), "scheduled")
    assert (scheduled["dueAt"][:19], scheduled["attempts"]) == ("2031-01-31T09:00:00", 0)
    assert {name: scheduled[name] for name in fields} == fields
    expired = await stack.until(task := await elsewhere.task(late), "dead")
    assert (expired["error"]["class"], world.effects(task)) == ("Expired", 0)
    done = await stack.until(task := await elsewhere.task(soon), "succeeded")
    assert (world.effects(task), done["maxAttempts"]) == (1, 2)
    began = next(entry["at"] for entry in done["timeline"] if entry["state"] == "running")
    waited = datetime.fromisoformat(began) - datetime.fromisoformat(done["createdAt"])
    assert waited.total_seconds() >= 1.5


async def test_a_foreign_task_of_a_lost_worker_is_published_by_the_relay(elsewhere: Elsewhere, world: World) -> None:
    stack, name = elsewhere.stack, str(uuid4())
    adoptee = ForeignTask(
        f"id:foreign:{name}", b"", uuid4(), "foreign", "{}", 4, "00-" + "1" * 32 + "-" + "2" * 16 + "-00"
    )
    known = await Tasks(stack.database).register([adoptee], 0.0)
    assert known[adoptee.identity].fresh
    await stack.until(adoptee.id, "succeeded")
    assert world.effects(adoptee.id) == 1
    assert not (await Tasks(stack.database).register([adoptee], 0.0))[adoptee.identity].fresh


async def test_a_payload_that_its_type_refuses_is_a_dead_task(elsewhere: Elsewhere) -> None:
    name = str(uuid4())
    await elsewhere.produce(record(name, script="no list"))
    shown = await elsewhere.stack.until(await elsewhere.task(name), "dead")
    assert shown["error"]["class"] == "InvalidPayload"
    assert shown["payload"] == {"script": "no list"}


async def test_text_that_postgresql_refuses_is_kept_as_it_came(elsewhere: Elsewhere) -> None:
    name = str(uuid4())
    await elsewhere.produce(record(name, secret="a\0b"))
    shown = await elsewhere.stack.until(await elsewhere.task(name), "succeeded")
    assert shown["payload"] == {"secret": "a\0b"}


async def test_a_record_that_cannot_be_accepted_is_a_dead_letter_with_its_bytes_untouched(elsewhere: Elsewhere) -> None:
    name = str(uuid4())
    await elsewhere.produce(record(name))
    await elsewhere.stack.until(await elsewhere.task(name), "succeeded")
    reused = json.dumps(record(name, secret="another")).encode()
    unknown = json.dumps({"taskType": "nobody", "payload": {"n": name}}).encode()
    for value, error in ((reused, "IdReused"), (unknown, "UnknownType")):
        await elsewhere.produce(value)
        letter = await elsewhere.letter(value)
        assert letter["error_class"] == error
        assert json.loads(letter["record_headers"]) == [["by", "/w=="]]


async def test_the_router_passes_a_topic_of_mixed_types_on(elsewhere: Elsewhere, world: World) -> None:
    stack = elsewhere.stack
    await create_topic(stack, MIXED)
    first, second = str(uuid4()), str(uuid4())
    unknown = json.dumps({"taskType": "nobody", "payload": {"n": first}}).encode()
    await elsewhere.produce({"taskId": first, "taskType": "scripted", "payload": {}}, MIXED)
    await elsewhere.produce(unknown, MIXED)
    await elsewhere.produce(b"no json " + first.encode(), MIXED)
    await elsewhere.produce({"taskId": second, "taskType": "held", "payload": {"script": ["ambiguous"]}}, MIXED)
    process, serving = await run_router(stack)
    task, held = await elsewhere.task(first, "scripted"), await elsewhere.task(second, "held")
    await stack.until(task, "succeeded")
    await stack.until(held, "uncertain")
    assert (await elsewhere.letter(unknown))["error_class"] == "UnknownType"
    assert (await elsewhere.letter(b"no json " + first.encode()))["error_class"] == "NotJson"
    process.drain()
    await serving

    before = len(await known(stack))
    await elsewhere.forget_offsets(router_group(elsewhere.prefix), MIXED)
    third = str(uuid4())
    await elsewhere.produce({"taskId": third, "taskType": "scripted", "payload": {}}, MIXED)
    process, serving = await run_router(stack)
    await stack.until(await elsewhere.task(third, "scripted"), "succeeded")
    process.drain()
    await serving
    assert len(await known(stack)) == before + 1
    assert (world.effects(task), world.effects(held)) == (1, 1)


async def test_the_router_counts_every_type_from_the_start(elsewhere: Elsewhere) -> None:
    stack = elsewhere.stack
    await create_topic(stack, "system-routed")
    await TaskTypes(stack.database).register(TaskType("routed-alone", "{}", 4, "resend", None))
    process, serving = await run_router(stack, "system-routed")

    async def begun() -> bool:
        return (
            'taskflux_adopted_total{outcome="poison",type="routed-alone"} 0.0'
            in (await stack.client.get("/metrics")).text
        )

    await eventually(begun, "the types are known")
    process.drain()
    await serving


async def run_router(stack: Stack, topic: str = MIXED) -> tuple[Process, asyncio.Task[None]]:
    settings = stack.settings.model_copy(update={"router": RouterSettings(topic=topic)})
    process = Process("router", settings)
    return process, asyncio.create_task(service_of(load("router")).serve(process))


async def known(stack: Stack) -> Any:
    """Every task of another producer that the log of this test's stack has become."""
    connection = await asyncpg.connect(stack.settings.postgres.dsn.get_secret_value(), statement_cache_size=0)
    try:
        return await connection.fetch("SELECT identity FROM foreign_tasks")
    finally:
        await connection.close()


async def lag(stack: Stack, task_type: str) -> int | None:
    positions = Positions(stack.settings.kafka)
    try:
        prefix = stack.settings.kafka.topic_prefix
        return await positions.lag(task_group(prefix, task_type), task_topic(prefix, task_type))
    finally:
        await positions.close()


async def create_topic(stack: Stack, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.settings.kafka.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, stack.settings.kafka.partitions, 1)])

        async def known() -> bool:  # Kafka answers before its brokers know
            (described,) = await admin.describe_topics([topic])
            return not described["error_code"] and all(each["leader"] >= 0 for each in described["partitions"])

        await eventually(known, f"{topic} is there")
    finally:
        await admin.close()
