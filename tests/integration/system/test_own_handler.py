"""A custom handler, outside this repo, as a process; and that its output has no personal data."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from uuid_utils.compat import uuid7

from taskflux.local.ports import free_port
from taskflux.local.processes import Process as Child
from taskflux.local.processes import run
from taskflux.store.tasks import Tasks
from taskflux.tasks.model import Submission
from tests.integration.system.stack import TASKFLUX, Stack, eventually, total

MODULE = """
from contextlib import asynccontextmanager

from pydantic import BaseModel

from taskflux import Permanent, Receipt, RetryPolicy, Task, Transient, handler, provider


class Image(BaseModel):
    url: str
    width: int = 100


class Settings(BaseModel):
    pass


class Gallery:
    async def fetch(self, url: str, then: str | None) -> None:
        with gallery.call("GET /images", {"http.request.method": "GET"}):
            match then:
                case "permanent":
                    raise Permanent(f"there is nothing at {url}")
                case "transient":
                    raise Transient(f"nobody answers at {url}")
                case "crash":
                    raise RuntimeError(f"cannot parse {url}")


@provider("gallery", settings=Settings)
@asynccontextmanager
async def gallery(settings: Settings):
    yield Gallery()


@handler("resize-image", payload=Image, provider=gallery, retry=RetryPolicy(max_attempts=2, first_delay=0.01))
async def resize_image(task: Task[Image], client: Gallery) -> Receipt:
    await client.fetch(task.payload.url, task.metadata.get("then"))
    return Receipt({"url": task.payload.url, "width": task.payload.width})
"""
TARGET = "my_app.handlers:resize_image"
SECRETS = ("ada.lovelace@example.org", "919812345678", "between-you-and-me")


@dataclass(frozen=True, slots=True)
class Own:
    """The process that runs it, and where it answers its probes."""

    child: Child
    probes: httpx.AsyncClient

    def log_lines(self) -> list[dict[str, Any]]:
        """Its log; every line is JSON."""
        return [json.loads(line) for line in self.child.log.read_text().splitlines()]


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def own(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Own]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_app").mkdir()
    (folder / "my_app" / "handlers.py").write_text(MODULE)
    log, port = stack.directory / "topics.log", free_port()
    await run(Child("topics", [TASKFLUX, "topics", TARGET], log=log, env=stack.environment(), cwd=folder), 30.0)
    child = stack.spawn(TARGET, "own", cwd=folder, TASKFLUX_HTTP__PORT=str(port))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5, trust_env=False) as probes:
        yield Own(child, probes)


async def test_a_custom_handler_is_registered_and_runs_its_tasks(stack: Stack, own: Own) -> None:
    answer = await stack.client.post("/tasks", json={"taskType": "resize-image", "payload": {"url": "u", "width": "x"}})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "payload.width")
    document = await stack.until(await _submit(stack, "u"), "succeeded")
    assert document["result"] == {"url": "u", "width": 100}
    assert (await own.probes.get("/livez")).status_code == (await own.probes.get("/readyz")).status_code == 200
    text = (await own.probes.get("/metrics")).text
    assert total(text, "taskflux_attempts_total", {"type": "resize-image", "outcome": "succeeded"}) == 1
    for outcome in ("adopted", "repeated", "poison"):
        assert f'taskflux_adopted_total{{outcome="{outcome}",type="resize-image"}} 0.0' in text
    for server in ("postgresql", "kafka", "redis"):
        assert f'taskflux_connections_opened_total{{server="{server}"}}' in text
    assert total(text, "taskflux_connections_opened_total", {"server": "postgresql"}) > 0


async def test_the_calls_to_its_own_provider_are_counted_by_how_they_ended(stack: Stack, own: Own) -> None:
    labels = {"provider": "gallery"}
    before = (await own.probes.get("/metrics")).text
    for outcome in ("succeeded", "Transient", "Permanent", "Ambiguous", "Unavailable", "Misconfigured", "crashed"):
        assert f'taskflux_provider_requests_total{{outcome="{outcome}",provider="gallery"}}' in before
    for then in ("permanent", "transient", ""):
        await stack.until(await _submit(stack, "u", then=then), "dead" if then else "succeeded")
    after = (await own.probes.get("/metrics")).text
    rises = {
        outcome: total(after, "taskflux_provider_requests_total", labels | {"outcome": outcome})
        - total(before, "taskflux_provider_requests_total", labels | {"outcome": outcome})
        for outcome in ("succeeded", "Transient", "Permanent", "crashed")
    }
    assert rises == {"succeeded": 1, "Transient": 2, "Permanent": 1, "crashed": 0}
    seconds = "taskflux_provider_request_seconds_count"
    assert total(after, seconds, labels) - total(before, seconds, labels) == 4


async def test_no_log_line_and_no_metric_holds_personal_data_and_every_line_of_an_attempt_names_task_and_trace(
    stack: Stack, own: Own, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("aiokafka", "asyncio", "httpx", "httpcore"):
        caplog.set_level(logging.WARNING, logger=name)
    outcomes = ("permanent", "transient", "crash", "")
    ended = {then: await _submit(stack, " ".join(SECRETS), then=then) for then in outcomes}
    for then, task in ended.items():
        document = await stack.until(task, "succeeded" if not then else "dead")
        assert SECRETS[0] in json.dumps(document["error"] if then else document["result"])  # where it belongs
        await stack.dead_letter(task) if then else None
    invalid = Submission(uuid7(), "resize-image", json.dumps({"url": [*SECRETS]}), 1, key=SECRETS[0])
    await Tasks(stack.database).insert([invalid], 0.0)
    await stack.dead_letter(invalid.id)
    here = await stack.submit("scripted", payload={"script": ["crash"], "secret": " ".join(SECRETS)}, key=SECRETS[0])
    await stack.until(here, "dead")
    refused = {"taskType": "resize-image", "payload": {"url": 5, "width": SECRETS[0]}, SECRETS[1]: SECRETS[2]}
    assert (await stack.client.post("/tasks", json=refused)).status_code == 422

    said = [own.child.log.read_text(), *(str(vars(record)) for record in caplog.records)]
    said += [(await own.probes.get("/metrics")).text, (await stack.client.get("/metrics")).text]
    assert [secret for secret in SECRETS for text in said if secret in text] == []
    for task in ended.values():
        trace = (await stack.get(task))["traceId"]
        lines = [line for line in own.log_lines() if line.get("task_id") == str(task)]
        assert lines
        assert {line["trace_id"] for line in lines} == {trace}
    crashes = [line for line in own.log_lines() if "crashed" in line["message"]]
    assert len(crashes) == 2
    assert "resize_image" in crashes[0]["message"]  # where it happened is said all the same


async def test_it_drains_and_ends_with_status_0_at_sigterm(stack: Stack, own: Own) -> None:
    await stack.until(await _submit(stack, "u"), "succeeded")
    own.child.send(signal.SIGTERM)
    assert await asyncio.wait_for(own.child.wait(), 8.0) == 0
    assert own.log_lines()[-1]["message"] == "stopped"

    async def ended() -> bool:
        return bool(await stack.sql.fetchval("SELECT ended FROM workers WHERE pid = $1", own.child.pid))

    await eventually(ended, "its lease is ended")


async def _submit(stack: Stack, url: str, then: str = "") -> Any:
    return await stack.submit("resize-image", payload={"url": url}, metadata={"then": then})
