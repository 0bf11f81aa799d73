"""Handlers that deliver through the notification service: only the service has credentials."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from pydantic import SecretStr

from taskflux.handlers.notify import notify
from taskflux.handlers.process_email import process_email
from taskflux.handlers.process_sms import process_sms
from taskflux.local.ports import free_port
from taskflux.local.servers import ValkeyServer
from taskflux.providers.provider import NotifySettings
from taskflux.store.settings import RedisSettings
from taskflux.stream.settings import KafkaSettings
from taskflux.worker.handler import Handler
from taskflux.worker.process import Process, Service
from taskflux.worker.settings import HttpSettings, Settings
from taskflux.worker.worker import service_of
from tests.conftest import NewDatabase
from tests.integration.providers.flow_api import Answer, FlowApi, flow_api
from tests.integration.providers.smtp_server import Postbox, smtp_server
from tests.integration.system.stack import LEASE, Stack, eventually, settings_for
from tests.keys import KEY


@asynccontextmanager
async def serving(target: Handler[Any] | Service, settings: Settings) -> AsyncIterator[Process]:
    process = Process(target.name, settings)
    task = asyncio.create_task(service_of(target).serve(process))

    async def started() -> bool:
        if task.done():
            task.result()
        return process.health.started

    await eventually(started, f"{target.name} starts")
    try:
        yield process
    finally:
        process.drain()
        await task


@pytest_asyncio.fixture
async def unhurried(
    new_database: NewDatabase, kafka_settings: KafkaSettings, valkey: ValkeyServer, tmp_path: Path
) -> AsyncIterator[Stack]:
    """A stack whose leases outlast whatever holds up a busy machine: a lost one would be another attempt."""
    kafka = kafka_settings.model_copy(update={"topic_prefix": "notify-"})
    settings = settings_for(await new_database(), kafka, RedisSettings.model_validate({"url": valkey.url}))
    worker = settings.worker.model_copy(update={"lease_seconds": 20 * LEASE})
    stack = await Stack.create(settings.model_copy(update={"worker": worker}), (process_email, process_sms), tmp_path)
    await asyncio.gather(stack.start("ingest"), stack.start("relay"))
    yield stack
    await stack.close()


@asynccontextmanager
async def processors(stack: Stack, postbox: Postbox, flow: FlowApi) -> AsyncIterator[None]:
    """The notification service, which has the providers' settings, and two handlers, which do not."""
    http = HttpSettings(host="127.0.0.1", port=free_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "SMTP__HOST": "127.0.0.1",
            "SMTP__PORT": str(postbox.port),
            "SMTP__TLS": "none",
            "SMTP__SENDER": "tasks@example.org",
            "MSG91__BASE_URL": flow.url,
            "MSG91__AUTH_KEY": "key",
            "MSG91__TEMPLATE_ID": "5f1a2b3c4d5e6f7a8b9c0d1e",
        }.items():
            patch.setenv(f"TASKFLUX_{name}", value)
        service = serving(notify, stack.settings.model_copy(update={"http": http}))
        await service.__aenter__()
    try:
        through = NotifySettings(url=f"http://127.0.0.1:{http.port}", key=SecretStr(KEY))
        settings = stack.settings.model_copy(update={"notify": through})
        async with serving(process_email, settings), serving(process_sms, settings):
            yield
    finally:
        await service.__aexit__(None, None, None)


async def submit(stack: Stack, task_type: str, payload: dict[str, Any]) -> UUID:
    answer = await stack.client.post("/tasks", json={"taskType": task_type, "payload": payload})
    assert answer.status_code == 202, answer.text
    return UUID(answer.json()["taskId"])


async def test_mails_and_short_messages_go_through_the_service_alone(unhurried: Stack) -> None:
    stack = unhurried
    async with smtp_server(Postbox()) as postbox, flow_api() as flow, processors(stack, postbox, flow):
        postbox.replies["bob@example.org"] = ["450 4.2.0 later"]
        mail = {"to": ["ann@example.org", "bob@example.org"], "subject": "Hello", "body": "Welcome!"}
        sent = await submit(stack, "email", mail)
        flow.answers.append(Answer(b"<html>"))
        text = {"name": "Ann", "mobile": "919876543210"}
        held = await submit(stack, "sms", text)
        shown = await stack.until(sent, "succeeded")
        assert set(shown["result"]["delivered"]) == {"ann@example.org", "bob@example.org"}
        assert [each.recipients for each in postbox.mails] == [["ann@example.org"], ["bob@example.org"]]
        assert shown["attempts"] == 2
        assert (await stack.until(held, "uncertain"))["error"]["class"] == "Ambiguous"
        assert [taken.flow["CRQID"] for taken in flow.taken] == [str(held)]
