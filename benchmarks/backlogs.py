"""Putting tasks where a consumer finds them: durable in PostgreSQL, their records in Kafka."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from benchmarks.lab import Scene
from benchmarks.payload import PAYLOAD
from taskflux.store.database import Database
from taskflux.store.publishing import PendingPublish, Publishing
from taskflux.store.tasks import Tasks
from taskflux.stream.envelope import OutRecord
from taskflux.stream.producer import Producer, Published
from taskflux.tasks.model import Submission
from taskflux.worker.publisher import Publisher

CHUNK: Final = 1000
GRACE: Final = 3600.0
TRACED: Final = 10
"""One task of so many is sampled by default; without effect on a process that records no spans."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Where one consumer's tasks stand and which topic carries them: `name` is a task type, or a floor's topic."""

    name: str
    table: str

    @classmethod
    def of_type(cls, task_type: str) -> Lane:
        """TaskFlux's own."""
        return cls(task_type, "tasks")

    @classmethod
    def of_floor(cls, name: str) -> Lane:
        """A bare consumer's."""
        return cls(name, "floor_tasks")


@dataclass(frozen=True, slots=True)
class Backlogs:
    """Publishes tasks, and sees when they are done."""

    scene: Scene
    database: Database
    producer: Producer
    connection: Any
    traced: int
    payload: str

    async def clear(self) -> None:
        """Forget all tasks; nothing may be under way."""
        await self.connection.execute("TRUNCATE tasks, due, claims, floor_tasks")

    async def publish(self, lane: Lane, count: int) -> None:
        """Make `count` tasks durable and send their records."""
        for first in range(0, count, CHUNK):
            ids = [uuid7() for _ in range(min(CHUNK, count - first))]
            publish = self._publish_tasks if lane.table == "tasks" else self._publish_bare
            await publish(lane.name, ids)

    async def done(self, lane: Lane) -> bool:
        """Whether every task of the lane has succeeded."""
        waits = f"SELECT EXISTS (SELECT FROM {lane.table} WHERE state <> 'succeeded')"
        return not await self.connection.fetchval(waits)

    async def last_outcome(self, lane: Lane) -> float:
        """When the last outcome was written, in seconds since 1970."""
        last = f"SELECT extract(epoch FROM max(updated_at))::float8 FROM {lane.table}"
        return float(await self.connection.fetchval(last))

    async def _publish_tasks(self, task_type: str, ids: Sequence[UUID]) -> None:
        traces = [
            f"00-{task.hex}-{task.hex[:16]}-{'01' if place % self.traced == self.traced - 1 else '00'}"
            for place, task in enumerate(ids)
        ]
        submissions = [
            Submission(task, task_type, self.payload, 8, traceparent=trace)
            for task, trace in zip(ids, traces, strict=True)
        ]
        await Tasks(self.database).insert(submissions, GRACE)
        publisher = Publisher(self.producer, Publishing(self.database, GRACE), self.scene.kafka.topic_prefix)
        published = await publisher.publish(
            [PendingPublish(each.id, task_type, 1, None, each.traceparent) for each in submissions]
        )
        if published < len(ids):
            raise RuntimeError(f"Kafka took {published} of {len(ids)} records")

    async def _publish_bare(self, name: str, ids: Sequence[UUID]) -> None:
        rows = [(task, name, self.payload) for task in ids]
        await self.connection.copy_records_to_table("floor_tasks", records=rows, columns=["id", "type", "payload"])
        topic, values = self.scene.topic(name), [str(task).encode() for task in ids]
        outcomes = await self.producer.publish([OutRecord(topic, value, value) for value in values])
        if not all(isinstance(outcome, Published) for outcome in outcomes):
            raise RuntimeError("Kafka did not take all records")


@asynccontextmanager
async def open_backlogs(
    scene: Scene, traced: int = TRACED, payload: Mapping[str, Any] = PAYLOAD
) -> AsyncIterator[Backlogs]:
    """What publishes tasks with this payload in `scene`; one task of `traced` is sampled."""
    async with AsyncExitStack() as stack:
        database = Database(scene.postgres, pool_size=2)
        await database.open()
        stack.push_async_callback(database.close)
        producer = Producer(scene.kafka)
        await producer.start()
        stack.push_async_callback(producer.stop)
        connection = await asyncpg.connect(scene.postgres.dsn.get_secret_value())
        stack.push_async_callback(connection.close)
        yield Backlogs(scene, database, producer, connection, traced, json.dumps(payload))
