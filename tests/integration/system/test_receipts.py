"""MSG91's delivery reports, from the webhook to the task as its reader sees it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio

from taskflux.local.ports import free_port
from taskflux.tasks.states import State
from taskflux.worker.loading import load
from taskflux.worker.process import Process
from taskflux.worker.settings import HttpSettings
from taskflux.worker.worker import service_of
from tests.integration.system.scripted import World
from tests.integration.system.stack import Stack, eventually
from tests.keys import HEADERS

SECRET = "a-secret-that-nobody-guesses"
HOOK = f"/webhooks/msg91/{SECRET}"


@pytest_asyncio.fixture(scope="module")
async def msg91(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """MSG91, which calls an ingest that has the secret."""
    http = HttpSettings(host="127.0.0.1", port=free_port())
    process = Process("ingest", stack.settings.model_copy(update={"http": http}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKFLUX_MSG91__WEBHOOK_SECRET", SECRET)
        serving = asyncio.create_task(service_of(load("ingest")).serve(process))

        async def started() -> bool:
            return process.health.started

        await eventually(started, "ingest starts")
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{http.port}", timeout=20, trust_env=False, headers=HEADERS
    ) as client:
        yield client
    process.drain()
    await serving


def flat(task: UUID | str, status: str = "1", **more: str) -> dict[str, str]:
    return {
        "date": "2026-03-01 12:30:00", "number": "919876543210", "requestId": "req-1", "CRQID": str(task),
        "status": status, "desc": "what the operator said", **more,
    }  # fmt: skip


async def test_first_reports_of_each_type_begin_at_nought(msg91: httpx.AsyncClient) -> None:
    async def begun() -> bool:
        text = (await msg91.get("/metrics")).text
        return all(f'taskflux_first_reports_total{{state="{each}",type="hasty"}}' in text for each in State)

    await eventually(begun, "the types are known")


async def test_an_uncertain_message_is_resolved_by_its_report(
    stack: Stack, world: World, msg91: httpx.AsyncClient
) -> None:
    task = await stack.submit("held", ["ambiguous", "succeed"])
    await stack.until(task, "uncertain")
    answer = await msg91.post(HOOK, json=flat(task))
    assert (answer.status_code, answer.json()) == (200, {"reports": 1, "matched": 1})
    shown = await stack.get(task)
    assert (shown["status"], shown["delivery"]["status"], shown["delivery"]["code"]) == ("succeeded", "delivered", "1")
    assert shown["timeline"][-1]["event"] == "resolved-succeeded"
    assert "9876543210" not in json.dumps(shown)
    assert world.effects(task) == 1


async def test_accepted_is_not_delivered_and_a_cached_answer_does_not_hide_the_report(
    stack: Stack, msg91: httpx.AsyncClient
) -> None:
    task = await stack.submit("scripted")
    await stack.until(task, "succeeded")
    assert "delivery" not in await stack.get(task)
    data = json.dumps([{"requestId": "req-1", "report": [flat(task, "2")]}])
    assert (await msg91.post(HOOK, data={"data": data})).json() == {"reports": 1, "matched": 1}
    assert (await stack.get(task))["delivery"]["status"] == "failed"
    await msg91.post(HOOK, json=flat(task, "1"))
    await msg91.post(HOOK, json=flat(task, "2"))
    shown = await stack.get(task)
    assert shown["delivery"]["status"] == "delivered"
    assert [entry["event"] for entry in shown["timeline"]].count("reported") == 2


async def test_a_report_for_an_unknown_message_is_answered_and_counted(msg91: httpx.AsyncClient) -> None:
    unknown, unmatched = flat(uuid4()), flat("no id of ours")
    answer = await msg91.post(HOOK, json=[unknown, unmatched])
    assert (answer.status_code, answer.json()) == (200, {"reports": 2, "matched": 0})
    metrics = (await msg91.get("/metrics")).text
    assert 'taskflux_delivery_reports_total{status="unknown"}' in metrics
    assert 'taskflux_delivery_reports_total{status="unmatched"}' in metrics
    assert (await msg91.post(HOOK, content=b"{", headers={"content-type": "application/json"})).status_code == 400
    assert (await msg91.post(HOOK, content=b"x", headers={"content-type": "text/xml"})).status_code == 415
    large = b" " * (2 * 1024 * 1024 + 1)
    assert (await msg91.post(HOOK, content=large, headers={"content-type": "application/json"})).status_code == 413


async def test_without_the_secret_nothing_is_served(stack: Stack, msg91: httpx.AsyncClient) -> None:
    for client, path in ((msg91, HOOK + "x"), (msg91, HOOK[:-1]), (msg91, "/webhooks/msg91/%00"), (stack.client, HOOK)):
        answer = await client.post(path, json=flat(uuid4()))
        assert answer.status_code == 404
        assert answer.json()["type"] == "/problems/not-found"


async def test_the_secret_stands_in_no_log_line(
    stack: Stack, msg91: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    task = await stack.submit("held", ["ambiguous"])
    await stack.until(task, "uncertain")
    await msg91.post(HOOK, json=flat(task))
    await msg91.post(HOOK, content=b"{", headers={"content-type": "application/json"})
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not [line for line in ours if SECRET in line]
