"""A release installed on this machine for the tests, and the ways that tasks take through it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx

from taskflux.local.ports import free_port
from taskflux.local.servers import Broker, PostgresServer, ValkeyServer
from taskflux.local.supervisor import Inbox
from taskflux.worker.loading import BUILT_IN
from tests.chart.launching import Launcher, eventually
from tests.chart.release import Part, Release
from tests.chart.rendering import Values, render
from tests.chart.servers import Servers
from tests.kafka.broker import KafkaBroker

OWN: Final = "resize-image"
OWN_IMAGE: Final = "registry.example.com/my-app:1.4"
OWN_VALUES: Final[Values] = {
    "handlers": {
        OWN: {
            "target": "my_app.handlers:resize_image",
            "taskType": OWN,
            "image": {"registry": "registry.example.com", "repository": "my-app", "tag": "1.4"},
        }
    }
}
"""A handler of one's own, as an application would deploy it from an image of its own."""

HANDLERS: Final = (*BUILT_IN, OWN)

_OWN_MODULE: Final = """
from pydantic import BaseModel

from taskflux.worker.handler import handler
from taskflux.tasks.model import Receipt, Task


class Image(BaseModel):
    width: int


@handler("resize-image", payload=Image)
async def resize_image(task: Task[Image]) -> Receipt:
    return Receipt({"halved": task.payload.width // 2})
"""


def write_application(directory: Path) -> None:
    """The application that `OWN_VALUES` deploys: what stands in its image's working directory."""
    package = directory / "my_app"
    package.mkdir(parents=True)
    (package / "handlers.py").write_text(_OWN_MODULE)


@asynccontextmanager
async def servers_for(
    postgres: PostgresServer, broker: Broker | KafkaBroker, valkey: ValkeyServer, inbox: Inbox, database: str
) -> AsyncIterator[Servers]:
    """These, with an empty database: the set-up Job migrates it."""
    connection = await asyncpg.connect(postgres.dsn)
    try:
        await connection.execute(f"CREATE DATABASE {database}")
        idempotent = bool(getattr(broker, "idempotent", False))
        demands = {"partitions": 2, "replicationFactor": 1, "fetchMaxWaitMs": 20, "idempotent": idempotent}
        demands["tansu"] = isinstance(broker, Broker)
        head, _, _ = postgres.dsn.rpartition("/")
        yield Servers(f"{head}/{database}", broker.bootstrap_servers, valkey.url, inbox.smtp_port, inbox.url, demands)
        await connection.execute(f"DROP DATABASE {database} WITH (FORCE)")
    finally:
        await connection.close()


def inbox_in(directory: Path) -> Inbox:
    """The local inbox on free ports: SMTP, and the Flow API's stand-in."""
    directory.mkdir()
    file, log = directory / "inbox.sqlite", directory / "inbox.log"
    return Inbox(smtp_port=free_port(), http_port=free_port(), file=file, log=log, environment=os.environ)


@asynccontextmanager
async def installed(servers: Servers, prefix: str, launcher: Launcher, *more: Values) -> AsyncIterator[Release]:
    """Every handler's release, its hooks run; none of its pods is started yet."""
    rendering = render(servers.values(prefix, HANDLERS), OWN_VALUES, *more)
    async with Release(rendering, servers.outside(), launcher) as release:
        await release.hooks("pre-install")
        yield release


@dataclass(frozen=True)
class Ways:
    """What a client does with a running release, and the expected results."""

    parts: Mapping[str, Part]
    api: httpx.AsyncClient
    inbox: Inbox

    async def sent(self, task_type: str, payload: Any) -> str:
        """The id of a task that was accepted."""
        response = await self.api.post("/tasks", json={"taskType": task_type, "payload": payload})
        assert response.status_code == 202, response.text
        return str(response.json()["taskId"])

    async def succeeded(self, task_id: str) -> Any:
        """The task, once it has ended well."""

        async def ended() -> Any:
            task = (await self.api.get(f"/tasks/{task_id}")).json()
            return task if task["status"] not in ("scheduled", "queued", "running") else None

        task = await eventually(ended, lambda: f"task {task_id} ends")
        assert task["status"] == "succeeded", task
        return task

    async def of_a_mail(self) -> None:
        payload = {"to": "ada@example.org", "subject": "Queued", "body": "Good morning."}
        await self.succeeded(await self.sent("email", payload))
        assert (await self.received("email"))["subject"] == "Queued"

    async def of_a_mail_at_once(self) -> None:
        payload = {"to": "ada@example.org", "subject": "At once", "body": "Good morning."}
        response = await self.api.post(f"{self.parts['notify'].url}/notifications/email", json=payload)
        assert response.status_code == 200, response.text
        assert (await self.received("email"))["subject"] == "At once"

    async def of_a_short_message(self) -> None:
        await self.succeeded(await self.sent("sms", {"mobile": "919812345678", "name": "Ada"}))
        assert (await self.received("sms"))["kind"] == "sms"

    async def of_a_simulated_task(self) -> None:
        await self.succeeded(await self.sent("simulated", {"delayMs": 100}))

    async def of_an_own_task(self) -> None:
        task = await self.succeeded(await self.sent(OWN, {"width": 640}))
        assert task["result"] == {"halved": 320}

    async def received(self, kind: str) -> Any:
        """The newest message of a kind."""
        answer = (await self.api.get(f"{self.inbox.url}/api/messages", params={"kind": kind})).json()
        return answer["messages"][0]
