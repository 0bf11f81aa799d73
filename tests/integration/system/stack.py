"""A whole TaskFlux in the test's own process, against real servers: ingest, relay, dlq-sink and scripted handlers.

What has to die is a process of its own (`Stack.spawn`): a task of the test's own loop cannot really be killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
from prometheus_client.parser import text_string_to_metric_families

from taskflux.local.ports import free_port
from taskflux.local.processes import Process as Child
from taskflux.store.database import Database
from taskflux.store.settings import PostgresSettings, RedisSettings
from taskflux.store.tasks import TaskTypes
from taskflux.stream.envelope import OutRecord
from taskflux.stream.positions import Positions
from taskflux.stream.producer import Producer, Published
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import task_group, task_topic
from taskflux.worker.handler import Handler
from taskflux.worker.loading import load
from taskflux.worker.process import Process, Service
from taskflux.worker.settings import HttpSettings, RelaySettings, Settings, WorkerSettings
from taskflux.worker.worker import service_of
from tests.integration.stream.patience import PATIENCE as PATIENCE
from tests.integration.stream.patience import eventually as eventually
from tests.integration.stream.patience import log_ends
from tests.keys import AUTH, HEADERS, SERVER

TASKFLUX = Path(sys.executable).with_name("taskflux")

LEASE = 3.0
GRACE = 3.0

Row = Any
"""An asyncpg.Record."""


def settings_for(postgres: PostgresSettings, kafka: KafkaSettings, redis: RedisSettings) -> Settings:
    """Everything that counts in tens of seconds counts in seconds here."""
    return Settings(
        postgres=postgres.model_copy(update={"statement_timeout": 2.5, "connect_timeout": 2.5}),
        kafka=kafka.model_copy(
            update={
                "produce_timeout": 2.0,
                "session_timeout": 2.0,
                "max_record_bytes": 100_000,
                "dead_letter_max_bytes": 300_000,
            }
        ),
        redis=redis,
        http=HttpSettings(host="127.0.0.1", port=free_port()),
        auth=AUTH,
        worker=WorkerSettings(lease_seconds=LEASE, beat_seconds=0.5, drain_seconds=2.0),
        relay=RelaySettings(grace=GRACE, max_wait=0.05, audit_seconds=0.5, leader_seconds=2.0, measure_seconds=0.25),
    )


@dataclass
class Stack:
    """The parts of one TaskFlux, each a task of the test's loop."""

    settings: Settings
    database: Database
    sql: asyncpg.Pool[Any]
    client: httpx.AsyncClient
    positions: Positions
    producer: Producer
    directory: Path
    _running: dict[str, tuple[Process, asyncio.Task[None]]] = field(default_factory=dict)
    _children: list[Child] = field(default_factory=list)
    _begun: dict[str, asyncio.Task[Any]] = field(default_factory=dict)

    @classmethod
    async def create(cls, settings: Settings, handlers: Sequence[Handler[Any]], directory: Path) -> Stack:
        """Nothing runs yet, but the types of `handlers` are registered and have their topics."""
        direct = settings.postgres.migrate_dsn or settings.postgres.dsn
        database = Database(settings.postgres, pool_size=4)
        await database.open()
        types = TaskTypes(database)
        for handler in handlers:
            await types.register(handler.task_type())
        await ensure_topics(settings.kafka, [handler.type for handler in handlers])
        producer = Producer(settings.kafka.model_copy(update={"dead_letter_max_bytes": 1_000_000}))
        await producer.start()
        return cls(
            settings,
            database,
            await asyncpg.create_pool(direct.get_secret_value(), min_size=0, max_size=3),
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{settings.http.port}", timeout=20, trust_env=False, headers=HEADERS
            ),
            Positions(settings.kafka),
            producer,
            directory,
        )

    # Parts -----------------------------------------------------------------------------------------------------------

    async def start(self, target: Handler[Any] | Service | str, name: str | None = None) -> Process:
        """Run `target` beside the test; returns once it has started."""
        target = service_of(load(target) if isinstance(target, str) else target)
        process = Process(target.name, self.settings)
        task = asyncio.create_task(target.serve(process))
        self._running[name or target.name] = (process, task)

        async def started() -> bool:
            if task.done():
                task.result()
            return process.health.started

        await eventually(started, f"{target.name} starts")
        return process

    async def stop(self, *names: str) -> None:
        """Drain these parts and wait for their end."""
        parts = [self._running.pop(name) for name in names]
        for process, _ in parts:
            process.drain()
        await asyncio.gather(*(task for _, task in parts))

    async def cut_off(self, name: str) -> None:
        """End one part without its drain: it does not resign and releases no claim."""
        _, task = self._running.pop(name)
        task.cancel()
        await asyncio.wait([task])

    def spawn(self, target: str, name: str, *, cwd: Path | None = None, **environment: str) -> Child:
        """`taskflux run <target>` as a process of its own, its log in `<directory>/<name>.log`."""
        log = self.directory / f"{name}.log"
        child = Child(name, [TASKFLUX, "run", target], log=log, env=self.environment() | environment, cwd=cwd)
        child.spawn()
        self._children.append(child)
        return child

    def environment(self) -> dict[str, str]:
        """The environment of a separate process of this stack."""
        settings = self.settings
        postgres = {"dsn": settings.postgres.dsn.get_secret_value(), "pooler": settings.postgres.pooler}
        sections = {
            "TASKFLUX_KAFKA": settings.kafka.model_dump_json(exclude={"sasl_password"}),
            "TASKFLUX_WORKER": settings.worker.model_dump_json(),
            "TASKFLUX_RELAY": settings.relay.model_dump_json(),
            "TASKFLUX_POSTGRES__DSN": str(postgres["dsn"]),
            "TASKFLUX_POSTGRES__POOLER": str(postgres["pooler"]).lower(),
            "TASKFLUX_POSTGRES__STATEMENT_TIMEOUT": str(settings.postgres.statement_timeout),
            "TASKFLUX_HTTP__HOST": "127.0.0.1",
            "TASKFLUX_HTTP__PORT": "0",
            **SERVER,
        }
        own = {name: value for name, value in os.environ.items() if not name.upper().startswith("TASKFLUX_")}
        return own | sections

    def begin(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Let `work` go on beside the tests, to be looked at by a later one; what was begun under that name counts."""
        if name not in self._begun:
            self._begun[name] = asyncio.create_task(work())
        return self._begun[name]

    async def close(self) -> None:
        """End what runs."""
        for task in self._begun.values():
            task.cancel()
        for child in self._children:
            child.kill()
        await self.stop(*self._running)
        await self.client.aclose()
        await self.producer.stop()
        await self.positions.close()
        await self.sql.close()
        await self.database.close()

    # Tasks -----------------------------------------------------------------------------------------------------------

    async def submit(self, task_type: str, script: list[str] | None = None, **fields: Any) -> UUID:
        """Send a task, by default a scripted one; its id."""
        document = {"taskType": task_type, "payload": {"script": script or ["succeed"]}, **fields}
        answer = await self.client.post("/tasks", json=document)
        assert answer.status_code == 202, answer.text
        return UUID(answer.json()["taskId"])

    async def submit_many(
        self, task_type: str, number: int, script: list[str] | None = None, **fields: Any
    ) -> list[UUID]:
        """Send as many alike in one batch; their ids."""
        document = {"taskType": task_type, "payload": {"script": script or ["succeed"]}, **fields}
        answer = await self.client.post("/tasks/batch", json=[document] * number)
        assert answer.status_code == 202, answer.text
        return [UUID(each["taskId"]) for each in answer.json()]

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

        try:
            document: dict[str, Any] = await eventually(there, f"{task} is {' or '.join(states)}", patience)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {await self.get(task)}") from None
        return document

    async def rows(self, tasks: Collection[UUID]) -> list[Row]:
        """The rows of these tasks."""
        rows: list[Row] = await self.sql.fetch("SELECT * FROM task_states WHERE id = ANY($1) ORDER BY id", list(tasks))
        return rows

    async def until_all(self, tasks: Collection[UUID], *states: str, patience: float = PATIENCE) -> list[Row]:
        """Their rows, once all of them are in one of `states`."""

        async def there() -> list[Row] | None:
            rows = await self.rows(tasks)
            found = {row["state"] for row in rows}
            return rows if len(rows) == len(tasks) and found <= set(states) else None

        try:
            rows: list[Row] = await eventually(there, f"all are {' or '.join(states)}", patience)
        except AssertionError as error:
            others = [
                (row["state"], row["timeline"][-3:]) for row in await self.rows(tasks) if row["state"] not in states
            ]
            raise AssertionError(f"{error}; {len(others)} of {len(tasks)} are not, such as {others[:3]}") from None
        return rows

    async def past(self, moment: datetime) -> None:
        """Return once PostgreSQL's clock has passed `moment`."""

        async def so() -> Any:
            return await self.sql.fetchval("SELECT now() > $1", moment)

        await eventually(so, f"{moment} is past")

    # What is to be seen ----------------------------------------------------------------------------------------------

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels; the parts in this process share their metrics."""
        answer = await self.client.get("/metrics")
        return total(answer.text, name, labels)

    async def dead_letter(self, task: UUID) -> Row:
        """The one dead letter of a task, once it is stored."""

        async def stored() -> Any:
            return await self.sql.fetch("SELECT * FROM dead_letters WHERE task_id = $1", task)

        (letter,) = await eventually(stored, f"the dead letter of {task} is stored")
        return letter

    async def lag(self, task_type: str) -> int:
        """Records of a type that no worker has consumed."""
        prefix = self.settings.kafka.topic_prefix
        lag = await self.positions.lag(task_group(prefix, task_type), task_topic(prefix, task_type))
        assert lag is not None
        return lag

    async def published(self, task_type: str) -> int:
        """Records that the topic of a type has ever taken."""
        ends = await log_ends(self.positions, task_topic(self.settings.kafka.topic_prefix, task_type))
        return sum(ends.values())

    async def produce(self, *records: OutRecord) -> list[Published]:
        """Send records as any producer could."""
        outcomes = await self.producer.publish(records)
        assert all(isinstance(outcome, Published) for outcome in outcomes), outcomes
        return [outcome for outcome in outcomes if isinstance(outcome, Published)]

    def topic(self, task_type: str) -> str:
        """The topic of a type."""
        return task_topic(self.settings.kafka.topic_prefix, task_type)


def total(text: str, name: str, labels: Mapping[str, str]) -> float:
    """The sum of the samples `name` with these labels in a Prometheus text."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
