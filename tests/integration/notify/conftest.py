"""A notification service of the test's own, over a real SMTP server, a Flow API and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from taskflux.handlers.notify import notify
from taskflux.local.ports import free_port
from taskflux.providers.provider import NotifySettings
from taskflux.store.settings import PostgresSettings
from taskflux.worker.process import Process
from taskflux.worker.settings import HttpSettings, Settings, WorkerSettings
from tests.conftest import NewDatabase
from tests.integration.providers.flow_api import FlowApi, flow_api
from tests.integration.providers.smtp_server import Postbox, smtp_server
from tests.integration.system.stack import eventually
from tests.keys import AUTH, HEADERS, KEY


@dataclass(frozen=True, slots=True)
class Service:
    """The service, and what it delivers to."""

    postbox: Postbox
    flow: FlowApi
    client: httpx.AsyncClient
    process: Process
    serving: asyncio.Task[None]
    postgres: PostgresSettings

    async def asked(self) -> bool:
        """Whether MSG91 was asked for anything."""
        return bool(self.flow.taken)

    @property
    def settings(self) -> NotifySettings:
        """How a handler reaches it."""
        return NotifySettings(url=str(self.client.base_url), key=SecretStr(KEY))


@asynccontextmanager
async def serving(
    postgres: PostgresSettings, environment: dict[str, str]
) -> AsyncIterator[tuple[Process, asyncio.Task[None]]]:
    """`notify`, started with these settings of the providers, until the end of the block."""
    settings = Settings(
        postgres=postgres,
        http=HttpSettings(host="127.0.0.1", port=free_port()),
        auth=AUTH,
        notify=NotifySettings(key=SecretStr(KEY)),
        worker=WorkerSettings(drain_seconds=1.0),
    )
    process = Process("notify", settings)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(f"TASKFLUX_{name}", value)
        task = asyncio.create_task(notify.serve(process))

        async def started() -> bool:
            if task.done():
                task.result()
            return process.health.started

        await eventually(started, "notify starts")
    try:
        yield process, task
    finally:
        process.drain()
        await task


@pytest_asyncio.fixture
async def service(new_database: NewDatabase) -> AsyncIterator[Service]:
    postgres = await new_database()
    async with smtp_server(Postbox()) as postbox, flow_api() as flow:
        environment = {
            "SMTP__HOST": "127.0.0.1",
            "SMTP__PORT": str(postbox.port),
            "SMTP__TLS": "none",
            "SMTP__SENDER": "tasks@example.org",
            "SMTP__DATA_TIMEOUT": "0.5",
            "MSG91__BASE_URL": flow.url,
            "MSG91__AUTH_KEY": "key",
            "MSG91__TEMPLATE_ID": "5f1a2b3c4d5e6f7a8b9c0d1e",
        }
        async with serving(postgres, environment) as (process, task):
            address = f"http://127.0.0.1:{process.settings.http.port}"
            async with httpx.AsyncClient(base_url=address, timeout=20, trust_env=False, headers=HEADERS) as client:
                yield Service(postbox, flow, client, process, task, postgres)
