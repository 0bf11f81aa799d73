"""A bare submitting service: `python -m benchmarks.floors.web insert|durable|publish|grouped PORT TOPIC`.

`insert` answers after one INSERT a request and publishes nothing. `durable` answers when Kafka also has the record,
with acks=all. `publish` produces the record after the answer and notes that Kafka has it, each by itself. `grouped` is
`insert` with the requests that wait sharing one statement.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import asyncpg
import uvicorn
from aiokafka import AIOKafkaProducer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uuid_utils.compat import uuid7

ONE: Final = "INSERT INTO floor_tasks (id, type, payload) VALUES ($1, $2, $3)"
MANY: Final = "INSERT INTO floor_tasks (id, type, payload) SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])"
PUBLISHED: Final = "UPDATE floor_tasks SET state = 'queued', updated_at = now() WHERE id = ANY($1::uuid[])"

Item = tuple[UUID, str, str]


class Service:
    """The endpoints."""

    def __init__(self, mode: str, topic: str) -> None:
        self._mode = mode
        self._topic = topic
        self._pool: Any = None
        self._producer: Any = None
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._writing = False
        self._background: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Connect before the first request."""
        self._pool = await asyncpg.create_pool(os.environ["TASKFLUX_POSTGRES__DSN"], min_size=4, max_size=4)
        self._producer = AIOKafkaProducer(
            bootstrap_servers=os.environ["TASKFLUX_KAFKA__BOOTSTRAP_SERVERS"],
            acks="all",
            enable_idempotence=os.environ["TASKFLUX_KAFKA__IDEMPOTENT"] == "True",
        )
        await self._producer.start()
        yield
        await asyncio.gather(*self._background)
        await self._producer.stop()
        await self._pool.close()

    async def submit(self, request: Request) -> JSONResponse:
        """One task."""
        item = _item(await request.json())
        if self._mode == "grouped":
            await self._insert_with_others(item)
        else:
            await self._pool.execute(ONE, *item)
        await self._publish([item])
        return JSONResponse({"taskId": str(item[0]), "taskType": item[1], "status": "accepted"}, 202)

    async def batch(self, request: Request) -> JSONResponse:
        """NDJSON, in one statement."""
        items = [_item(json.loads(line)) for line in (await request.body()).splitlines()]
        await self._pool.execute(MANY, *map(list, zip(*items, strict=True)))
        await self._publish(items)
        return JSONResponse([{"taskId": str(item[0]), "taskType": item[1]} for item in items], 202)

    async def _insert_with_others(self, item: Item) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if not self._writing:
            self._writing = True
            self._go_on(self._write())
        await future

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await self._pool.execute(MANY, *map(list, zip(*(item for item, _ in batch), strict=True)))
            for _, future in batch:
                future.set_result(None)
        self._writing = False

    async def _publish(self, items: list[Item]) -> None:
        if self._mode == "durable":
            await self._produce(items)
        elif self._mode == "publish":
            self._go_on(self._produce_and_note(items))

    async def _produce(self, items: list[Item]) -> None:
        await asyncio.gather(*[await self._producer.send(self._topic, str(item[0]).encode()) for item in items])

    async def _produce_and_note(self, items: list[Item]) -> None:
        await self._produce(items)
        await self._pool.execute(PUBLISHED, [item[0] for item in items])

    def _go_on(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _item(document: dict[str, Any]) -> Item:
    return uuid7(), document["taskType"], json.dumps(document["payload"])


def main(mode: str, port: int, topic: str) -> None:
    """Serve until SIGTERM."""
    service = Service(mode, topic)
    routes = [
        Route("/tasks", service.submit, methods=["POST"]),
        Route("/tasks/batch", service.batch, methods=["POST"]),
    ]
    app = Starlette(routes=routes, lifespan=service.lifespan)
    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
