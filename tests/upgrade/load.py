"""The load: mixed tasks at a steady rate, cancels while they wait and run, and records that come a second time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx

from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import OutRecord
from taskflux.stream.producer import Producer
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import task_topic
from tests.keys import HEADERS

TYPES = ("email", "sms", "simulated", "drill-held")
LATE = "drill-late"
"""A type whose worker does not run, until a phase has it run: its records wait in Kafka."""
TICK = 0.25
PATIENCE = 90.0
"""Seconds that every ingest may be unreachable."""
FIRST_MOBILE = 919_000_000_000


@dataclass(slots=True)
class Sent:
    """An accepted task. `cancelled_at` is when its cancel was answered with 200; `cancel_asked`: whatever came."""

    number: int
    id: UUID
    document: dict[str, Any]
    cancel_asked: bool = False
    cancelled_at: float | None = None

    @property
    def type(self) -> str:
        return str(self.document["taskType"])

    @property
    def must_die(self) -> bool:
        """Its only attempt fails."""
        return bool(self.document["payload"].get("simulateFail"))

    @property
    def may_expire(self) -> bool:
        return "delaySeconds" in self.document and "expiresAt" in self.document


@dataclass(slots=True)
class Load:
    """Sends `rate` tasks a second while it runs. `urls` answers where an ingest serves now."""

    urls: Callable[[], Sequence[str]]
    rate: float
    draw: random.Random
    sent: dict[UUID, Sent] = field(default_factory=dict)
    cancels: int = 0
    longest: float = 0.0
    """Seconds that the slowest submit took, its repeats included."""
    faults: list[str] = field(default_factory=list)
    _number: int = 0
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)
    _running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Send no more; returns when everything that was begun has its answer."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    async def _run(self) -> None:
        async with httpx.AsyncClient(timeout=20, trust_env=False, headers=HEADERS) as client:
            try:
                while True:
                    documents = [self._make() for _ in range(round(self.rate * TICK))]
                    self._spawn(self._send(client, documents))
                    await asyncio.sleep(TICK)
            finally:
                while self._under_way:
                    await asyncio.wait(set(self._under_way))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.faults.append(f"{type(error).__name__}: {error}")

    async def send_now(self, documents: Sequence[dict[str, Any]]) -> list[UUID]:
        """Send these beside the load, and return their ids."""
        async with httpx.AsyncClient(timeout=20, trust_env=False, headers=HEADERS) as client:
            return await self._accepted(client, documents)

    def late(self, count: int) -> list[dict[str, Any]]:
        """Tasks of the type whose worker does not run."""
        return [self._numbered({"taskType": LATE, "payload": {"seconds": 0.01}}) for _ in range(count)]

    def _make(self) -> dict[str, Any]:
        draw, task_type = self.draw, self.draw.choice(TYPES)
        payload: dict[str, Any]
        number = self._number
        match task_type:
            case "email":
                payload = {"to": f"user{number}@example.org", "subject": f"Drill {number}", "body": "x"}
            case "sms":
                payload = {"mobile": str(FIRST_MOBILE + number), "name": f"User {number}"}
            case "drill-held":
                payload = {"seconds": draw.uniform(0.0, 0.5), "failures": draw.choice((0, 0, 0, 1, 2))}
            case _:
                payload = {"delayMs": draw.randint(0, 50), "failRate": draw.choice((0, 0, 0, 0.15))}
        document: dict[str, Any] = {"taskType": task_type, "payload": payload}
        if task_type == "simulated" and draw.random() < 0.05:
            payload["simulateFail"] = True
            document["maxAttempts"] = 1
        if draw.random() < 0.15:
            document["delaySeconds"] = round(draw.uniform(0.2, 6.0), 2)
            if task_type == "simulated" and draw.random() < 0.3:
                document["expiresAt"] = _rfc3339(time.time() + document["delaySeconds"] + 0.3)
        if draw.random() < 0.15:
            document["key"] = f"key-{draw.randint(1, 5)}"
        return self._numbered(document)

    def _numbered(self, document: dict[str, Any]) -> dict[str, Any]:
        number, self._number = self._number, self._number + 1
        return document | {"idempotencyKey": f"drill-{number}", "metadata": {"number": number}}

    async def _send(self, client: httpx.AsyncClient, documents: Sequence[dict[str, Any]]) -> None:
        for task in await self._accepted(client, documents):
            if self.draw.random() < 0.12:
                self._spawn(self._cancel(client, self.sent[task], self.draw.uniform(0.0, 3.0)))

    async def _accepted(self, client: httpx.AsyncClient, documents: Sequence[dict[str, Any]]) -> list[UUID]:
        began, left, accepted = time.monotonic(), list(documents), list[UUID]()
        while left:
            for index, result in enumerate(await self._post(client, left)):
                if result["status"] == 202:
                    document = left[index]
                    task = Sent(document["metadata"]["number"], UUID(result["taskId"]), document)
                    self.sent[task.id] = task
                    accepted.append(task.id)
                elif result["status"] != 503:
                    raise RuntimeError(f"refused: {result}")
            done = {self.sent[task].number for task in accepted}
            left = [document for document in left if document["metadata"]["number"] not in done]
            if left:
                if time.monotonic() - began > PATIENCE:
                    raise RuntimeError(f"{len(left)} tasks were not accepted within {PATIENCE:g} s")
                await asyncio.sleep(0.1)
        self.longest = max(self.longest, time.monotonic() - began)
        return accepted

    async def _post(self, client: httpx.AsyncClient, documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results in the order of the documents; empty where the answer is not known."""
        with suppress(httpx.TransportError, ValueError, IndexError):  # an ingest dies in the middle of its answer
            answer = await client.post(f"{self._url()}/tasks/batch", json=documents)
            if answer.status_code == 202:
                return sorted(answer.json(), key=lambda result: int(result["index"]))
        return []

    async def _cancel(self, client: httpx.AsyncClient, task: Sent, after: float) -> None:
        await asyncio.sleep(after)
        task.cancel_asked = True
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError, IndexError):
                answer = await client.delete(f"{self._url()}/tasks/{task.id}")
                if answer.status_code == 200:
                    task.cancelled_at = time.time()
                    self.cancels += 1
                    return
                if answer.status_code == 409:
                    return
                if answer.status_code != 503:
                    raise RuntimeError(f"a cancel was answered with {answer.status_code}: {answer.text}")
            await asyncio.sleep(0.2)

    def _url(self) -> str:
        """IndexError: none serves now."""
        urls = self.urls()
        return urls[self.draw.randrange(len(urls))] if urls else urls[0]


def _rfc3339(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03}Z"


@dataclass(slots=True)
class Duplicates:
    """Writes a share of all records to their topics once more, up to `latest` seconds later."""

    settings: KafkaSettings
    draw: random.Random
    share: float = 0.3
    latest: float = 12.0
    written: int = 0
    _seen: set[bytes] = field(default_factory=set)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _pending: set[asyncio.Task[None]] = field(default_factory=set)
    _exits: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, types: Iterable[str] = TYPES) -> None:
        """Begin to read the topics of these types."""
        producer = Producer(self.settings)
        await producer.start()
        self._exits.push_async_callback(producer.stop)
        for task_type in types:
            topic = task_topic(self.settings.topic_prefix, task_type)
            consumer = Consumer(self.settings, f"duplicates-{task_type}", topic)
            await consumer.start()
            self._exits.push_async_callback(consumer.stop)
            self._tasks.append(asyncio.create_task(self._copy(consumer, producer)))

    async def stop(self) -> None:
        """Write no more."""
        for task in (*self._tasks, *self._pending):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._pending, return_exceptions=True)
        await self._exits.aclose()

    async def _copy(self, consumer: Consumer, producer: Producer) -> None:
        while True:
            records = await consumer.fetch(500, 1.0)
            consumer.note_done(records)
            for record in records:
                if record.value is None or record.value in self._seen:
                    continue
                self._seen.add(record.value)
                if self.draw.random() < self.share:
                    copy = OutRecord(record.topic, record.key, record.value, record.headers)
                    task = asyncio.create_task(self._write(producer, copy, self.draw.uniform(0.0, self.latest)))
                    self._pending.add(task)
                    task.add_done_callback(self._pending.discard)

    async def _write(self, producer: Producer, record: OutRecord, after: float) -> None:
        await asyncio.sleep(after)
        await producer.publish([record])
        self.written += 1
