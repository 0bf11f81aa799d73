"""aiokafka and confluent-kafka at the same work: `python -m benchmarks.kafka_clients BROKER [--rounds 5]`.

Prints the table of docs/decisions/0001-kafka-client.md. Each figure is taken in a process of its own, and the clients
take turns within every round. confluent-kafka is not a dependency: without it the table has one column.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.proc import memory_mib

PARTITIONS: Final = 12
VALUE: Final = b'{"to": "someone@example.org", "data": "' + b"x" * 159 + b'"}'
HEADERS: Final = [("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"), ("type", b"email"), ("v", b"1")]
CHUNK: Final = PARTITIONS * 42  # records that one caller sends, and that one fetch returns at most
RECORDS: Final = CHUNK * 400
CALLERS, COMMIT_EVERY, IDLE = 4, 0.1, 4.0

Figures = dict[str, float]
Send = Callable[[], Awaitable[None]]
Records = list[tuple[int, int, Any, Any]]  # (partition, offset, value, headers)
Reader = tuple[Callable[[], Awaitable[Records]], Callable[[dict[int, int]], Awaitable[None]]]  # take, commit


class Job(NamedTuple):
    broker: str
    topic: str
    idempotent: bool


async def aiokafka_producer(job: Job, closing: AsyncExitStack) -> Send:
    aiokafka = importlib.import_module("aiokafka")  # here: the other client's process must not pay for it
    options = {"acks": "all", "enable_idempotence": job.idempotent, "max_batch_size": 262_144}
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=job.broker, **options)

    async def send() -> None:
        sent = []
        for partition in range(PARTITIONS):
            batch = producer.create_batch()
            for _ in range(CHUNK // PARTITIONS):
                batch.append(timestamp=None, key=b"key", value=VALUE, headers=HEADERS)
            sent.append(await producer.send_batch(batch, job.topic, partition=partition))
        await asyncio.gather(*sent)

    await producer.start()
    closing.push_async_callback(producer.stop)
    return send


async def confluent_producer(job: Job, closing: AsyncExitStack) -> Send:
    """The plain Producer: AIOProducer refuses headers, produce_batch drops them (confluent-kafka-python#2320)."""
    options = {"bootstrap.servers": job.broker, "acks": "all", "enable.idempotence": job.idempotent}
    producer = importlib.import_module("confluent_kafka").Producer(options | {"batch.size": 262_144})

    def poll() -> None:
        while True:
            producer.poll(0.1)

    async def send() -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reports: list[Any] = []

        def confirmed(error: Any, _: Any) -> None:
            reports.append(error)
            if len(reports) == CHUNK:
                done.get_loop().call_soon_threadsafe(done.set_result, None)

        for number in range(CHUNK):
            producer.produce(job.topic, VALUE, b"key", number % PARTITIONS, on_delivery=confirmed, headers=HEADERS)
        await done
        if any(reports):
            raise RuntimeError(f"not confirmed: {set(map(str, reports))}")

    threading.Thread(target=poll, daemon=True).start()
    closing.push_async_callback(asyncio.to_thread, producer.flush)
    return send


async def aiokafka_consumer(job: Job, closing: AsyncExitStack) -> Reader:
    aiokafka = importlib.import_module("aiokafka")
    options = {"auto_offset_reset": "earliest", "enable_auto_commit": False, "session_timeout_ms": 10_000}
    consumer = aiokafka.AIOKafkaConsumer(job.topic, bootstrap_servers=job.broker, group_id=uuid.uuid4().hex, **options)

    async def take() -> Records:
        found = await consumer.getmany(timeout_ms=200, max_records=CHUNK)
        return [(r.partition, r.offset, r.value, r.headers) for records in found.values() for r in records]

    async def commit(positions: dict[int, int]) -> None:
        await consumer.commit({aiokafka.TopicPartition(job.topic, at): offset for at, offset in positions.items()})

    await consumer.start()
    closing.push_async_callback(consumer.stop)
    return take, commit


async def confluent_consumer(job: Job, closing: AsyncExitStack) -> Reader:
    kafka = importlib.import_module("confluent_kafka")
    options = {"bootstrap.servers": job.broker, "group.id": uuid.uuid4().hex, "session.timeout.ms": 10_000}
    options |= {"auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = importlib.import_module("confluent_kafka.aio").AIOConsumer(options, max_workers=2)

    async def take() -> Records:
        found = await consumer.consume(CHUNK, 0.2)
        return [(m.partition(), m.offset(), m.value(), m.headers()) for m in found if m.error() is None]

    async def commit(positions: dict[int, int]) -> None:
        offsets = [kafka.TopicPartition(job.topic, number, offset) for number, offset in positions.items()]
        await consumer.commit(offsets=offsets, asynchronous=False)

    await consumer.subscribe([job.topic])
    closing.push_async_callback(consumer.close)
    return take, commit


PRODUCERS: Final = {"aiokafka": aiokafka_producer, "confluent-kafka": confluent_producer}
CONSUMERS: Final = {"aiokafka": aiokafka_consumer, "confluent-kafka": confluent_consumer}


async def wake(client: str, job: Job, closing: AsyncExitStack) -> Figures:
    """When the first record was there, on the clock that all processes share; then a member with nothing to do."""
    take, _ = await CONSUMERS[client](job, closing)
    while not await take():
        pass
    at, cpu = time.monotonic(), time.process_time()
    while time.monotonic() < at + IDLE:
        await take()
    return {"at": at, **idle("consumer", cpu)}


async def produce(client: str, job: Job, closing: AsyncExitStack) -> Figures:
    """Idle, connected to every leader; then chunks, some at a time, until all are confirmed."""
    send = await PRODUCERS[client](job, closing)
    await send()
    cpu = time.process_time()
    await asyncio.sleep(IDLE)
    figures = idle("producer", cpu)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(RECORDS // CHUNK // CALLERS):
        await asyncio.gather(*(send() for _ in range(CALLERS)))
    return figures | cost("produce", RECORDS, wall, cpu)


async def consume(client: str, job: Job, closing: AsyncExitStack) -> Figures:
    """From the first fetch that returns something, with a commit every so often."""
    take, commit = await CONSUMERS[client](job, closing)
    while not await take():
        pass
    positions: dict[int, int] = {}
    wall, cpu, seen, due = time.perf_counter(), time.process_time(), 0, time.perf_counter() + COMMIT_EVERY
    while seen < RECORDS - CHUNK:
        found = await take()
        seen += len(found)
        positions |= {partition: offset + 1 for partition, offset, _, _ in found}
        if time.perf_counter() > due:
            await commit(positions)
            due += COMMIT_EVERY
    await commit(positions)
    return cost("consume", seen, wall, cpu)


def cost(what: str, records: int, wall: float, cpu: float) -> Figures:
    used = (time.process_time() - cpu) / records * 1e6
    return {f"{what}: records/s": records / (time.perf_counter() - wall), f"{what}: CPU µs a record": used}


def idle(what: str, cpu: float) -> Figures:
    used = (time.process_time() - cpu) / IDLE * 1000
    return {f"idle {what}: PSS MiB": memory_mib(os.getpid())["PSS MiB"], f"idle {what}: CPU ms/s": used}


JOBS: Final = {job.__name__: job for job in (wake, produce, consume)}


async def child(name: str, client: str, job: Job) -> None:
    async with AsyncExitStack() as closing:
        print(json.dumps(await JOBS[name](client, job, closing)))


async def measure(name: str, client: str, job: Job) -> Figures:
    """In a process of its own; a cold start is timed from before it exists."""
    code = f"import asyncio; from benchmarks.kafka_clients import *; asyncio.run(child({name!r}, {client!r}, {job!r}))"
    argv, began = [sys.executable, "-c", code], time.monotonic()
    figures: Figures = json.loads(await asyncio.to_thread(subprocess.check_output, argv, timeout=120))
    return {"cold start: s": figures.pop("at") - began, **figures} if "at" in figures else figures


def installed_megabytes(client: str) -> float:
    files = importlib.metadata.distribution(client).files or []
    return sum(Path(str(file.locate())).stat().st_size for file in files if file.suffix != ".pyc") / 1e6


async def table(job: Job, sizes: dict[str, float], rounds: int) -> dict[str, dict[str, list[float]]]:
    """What → client → its figure in each round. Every round has a topic of its own, with something in it to wake by."""
    kafka = importlib.import_module("aiokafka.admin")
    found = {"installed: MB": {client: [size] for client, size in sizes.items()}}
    admin = kafka.AIOKafkaAdminClient(bootstrap_servers=job.broker)
    await admin.start()
    for number in range(rounds):
        turn = job._replace(topic=f"kafka-clients-{uuid.uuid4().hex[:8]}")
        await admin.create_topics([kafka.NewTopic(turn.topic, PARTITIONS, -1, replica_assignments={})])
        await asyncio.sleep(1)  # its leaders learn of it a moment later
        async with AsyncExitStack() as closing:
            await (await aiokafka_producer(turn, closing))()
        for name in JOBS:
            for client in sizes if number % 2 else reversed(sizes):
                for what, figure in (await measure(name, client, turn)).items():
                    found.setdefault(what, {}).setdefault(client, []).append(figure)
        await admin.delete_topics([turn.topic])
    await admin.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("broker", help="host:port; topics are created and deleted")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-idempotence", action="store_true", help="for brokers without it (the embedded one)")
    asked = parser.parse_args()
    found = [client for client in PRODUCERS if importlib.util.find_spec(client.replace("-", "_"))]
    sizes = {client: installed_megabytes(client) for client in found}
    if len(sizes) < len(PRODUCERS):
        print("confluent-kafka is not installed (pip install 'confluent-kafka>=2.13'): aiokafka alone", file=sys.stderr)
    lines = asyncio.run(table(Job(asked.broker, "", not asked.no_idempotence), sizes, asked.rounds))
    titles = " | ".join(f"{client} {importlib.metadata.version(client)}" for client in sizes)
    print(f"| median | {titles} | ratio |\n|---|{'---|' * len(sizes)}---|")
    for what, figures in lines.items():
        columns = [figures[client] for client in sizes]
        medians = " | ".join(f"{statistics.median(column):,.4g}" for column in columns)
        ratio = statistics.median(b / a for a, b in zip(columns[0], columns[-1], strict=True))
        print(f"| {what} | {medians} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
