"""A whole TaskFlux in the test's own process, against real servers: ingest, relay, dlq-sink and the scripted handlers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx

from handlers.cli.loading import load
from handlers.runtime.handler import Handler
from handlers.runtime.process import Process, Serves
from handlers.runtime.settings import HttpSettings, RelaySettings, Settings, WorkerSettings
from handlers.store.database import Database
from handlers.store.settings import PostgresSettings, RedisSettings
from handlers.store.task_types import TaskTypes
from handlers.stream.provision import ensure_topics
from handlers.stream.settings import KafkaSettings
from tests.integration.system import scripted

HANDLERS: tuple[Handler[Any], ...] = (scripted.scripted, scripted.held, scripted.provided)
PATIENCE = 30.0
"""Seconds after which a wait has failed: far above what any of them takes."""


async def eventually(condition: Callable[[], Awaitable[Any]], what: str, patience: float = PATIENCE) -> Any:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if answer := await condition():
            return answer
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {patience} s: {what}")


@dataclass
class Stack:
    """The parts of one TaskFlux, each a task of the test's loop."""

    settings: Settings
    database: Database
    client: httpx.AsyncClient
    _running: dict[str, tuple[Process, asyncio.Task[None]]] = field(default_factory=dict)

    @classmethod
    async def create(cls, postgres: PostgresSettings, kafka: KafkaSettings, redis: RedisSettings) -> Stack:
        settings = Settings(
            postgres=postgres,
            kafka=kafka,
            redis=redis,
            http=HttpSettings(host="127.0.0.1", port=free_port()),
            worker=WorkerSettings(lease_seconds=3.0, beat_seconds=0.5, drain_seconds=2.0),
            relay=RelaySettings(grace=6.0, max_wait=0.05, audit_seconds=0.5, leader_seconds=2.0),
        )
        settings.postgres.statement_timeout = 2.5
        database = Database(postgres, pool_size=4)
        await database.open()
        types = TaskTypes(database)
        for handler in HANDLERS:
            await types.register(handler.task_type())
        await ensure_topics(kafka, [handler.type for handler in HANDLERS])
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.http.port}", timeout=20, trust_env=False)
        return cls(settings, database, client)

    async def start(self, target: Serves, name: str | None = None) -> Process:
        """Run `target` beside the test; returns once it has started."""
        process = Process(target.name, self.settings)
        task = asyncio.create_task(target.serve(process))
        self._running[name or target.name] = (process, task)

        async def started() -> bool:
            if task.done():
                task.result()
            return process.health.started

        await eventually(started, f"{target.name} starts")
        return process

    async def start_all(self) -> None:
        """Everything that a task needs on its way."""
        await asyncio.gather(
            *(self.start(load(name)) for name in ("ingest", "relay", "dlq-sink")),
            *(self.start(handler) for handler in HANDLERS),
        )

    async def stop(self, name: str) -> None:
        """Drain one part and wait for its end."""
        process, task = self._running.pop(name)
        process.drain()
        await task

    async def kill(self, name: str) -> None:
        """End one part as a lost machine would: nothing is handed back, no lease is ended.

        Its pool and consumer are cut off without a word; only what is durable remains.
        """
        _, task = self._running.pop(name)
        task.cancel()
        await asyncio.wait([task])

    async def close(self) -> None:
        """Drain what runs."""
        for process, _ in self._running.values():
            process.drain()
        await asyncio.gather(*(task for _, task in self._running.values()))
        await self.client.aclose()
        await self.database.close()

    async def submit(self, task_type: str, script: list[str] | None = None, **fields: Any) -> UUID:
        """Send a scripted task; its id."""
        payload = {"script": script or ["succeed"]}
        answer = await self.client.post("/tasks", json={"taskType": task_type, "payload": payload, **fields})
        assert answer.status_code == 202, answer.text
        return UUID(answer.json()["taskId"])

    async def get(self, task: UUID) -> dict[str, Any]:
        """The task as the API shows it."""
        answer = await self.client.get(f"/tasks/{task}")
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def until(self, task: UUID, *states: str, patience: float = PATIENCE) -> dict[str, Any]:
        """The task, once it is in one of `states`."""

        async def there() -> dict[str, Any] | None:
            document = await self.get(task)
            return document if document["status"] in states else None

        document: dict[str, Any] = await eventually(there, f"{task} is {' or '.join(states)}", patience)
        return document


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
