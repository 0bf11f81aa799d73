"""Requests and rows that would fill a process's memory are refused, and it stays small and alive meanwhile."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from uuid_utils.compat import uuid7

from taskflux.local.ports import free_port
from taskflux.local.processes import Process as Child
from taskflux.store.tasks import TaskTypes
from taskflux.stream.provision import ensure_topics
from taskflux.tasks.bounds import MOST_BYTES
from taskflux.worker.handler import Handler
from taskflux.worker.loading import load
from tests.integration.system.stack import Stack, eventually
from tests.keys import HEADERS

pytestmark = pytest.mark.slow

MOST_MIB = 300
"""What neither may ever have held: once ingest held 992 MiB, and a worker 1,159."""

JSON = {"content-type": "application/json"}
TASK = "INSERT INTO tasks (id, type, payload, max_attempts) VALUES ($1, 'simulated', $2, 3)"
DUE = "INSERT INTO due (task_id, type, version, publish_at) VALUES ($1, 'simulated', 1, now())"
LISTS = b"[" + b"[]," * (29 * 1024 * 1024 // 3) + b"[]]"


def forget_the_peak(child: Child) -> None:
    """Let what the process holds now be the most that it has ever held (proc(5), clear_refs)."""
    Path(f"/proc/{child.pid}/clear_refs").write_text("5")


def peak_mib(child: Child) -> float:
    """The most memory that a process has had resident since its peak was forgotten (proc(5), VmHWM)."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{child.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ingest(stack: Stack) -> AsyncIterator[tuple[Child, httpx.AsyncClient]]:
    """Ingest in a process of its own, and a client of it; it knows the types of mails and of simulated work."""
    for name in ("process-email", "process-simulated"):
        handler = load(name)
        assert isinstance(handler, Handler)
        await TaskTypes(stack.database).register(handler.task_type())
    await ensure_topics(stack.settings.kafka, ["email", "simulated"])
    port = free_port()
    child = stack.spawn(
        "ingest",
        "attacked-ingest",
        TASKFLUX_HTTP__PORT=str(port),
        TASKFLUX_POSTGRES__STATEMENT_TIMEOUT="20",
        TASKFLUX_WORKER__LEASE_SECONDS="30",
    )
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False, headers=HEADERS
    ) as client:

        async def serves() -> bool:
            try:
                return (await client.get("/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(serves, "ingest serves")
        yield child, client
    child.kill()


async def slowest_livez(client: httpx.AsyncClient, until: asyncio.Event) -> float:
    """Seconds that livez took at most until then."""
    slowest = 0.0
    while not until.is_set():
        began = time.monotonic()
        assert (await client.get("/livez")).status_code == 200
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(0.01)
    return slowest


async def post(client: httpx.AsyncClient, body: bytes, path: str = "/tasks") -> int:
    try:
        return (await client.post(path, content=body, headers=JSON)).status_code
    except httpx.TransportError:  # refused before all was sent
        return 413


async def test_bodies_that_would_fill_the_memory_are_refused_while_livez_answers(
    ingest: tuple[Child, httpx.AsyncClient],
) -> None:
    child, client = ingest
    forget_the_peak(child)
    task = b'{"taskType":"simulated","payload":%s}'
    attacks = {
        "29 MiB of lists": task % LISTS,
        "15 MiB of lists": task % (b"[" + b"[]," * (5 * 1024 * 1024) + b"[]]"),
        "as many values as may be": task % (b'{"x":[' + b"{}," * 99_990 + b"{}]}"),
        "a payload of 15 MiB": task % (b'"' + b"\xc3\xa9" * (7 * 1024 * 1024) + b'"'),
        "wrong in very many places": b'{"taskType":"email","payload":{"attachments":[%s{}]}}' % (b"{}," * 99_000),
        "deep": task % (b"[" * 5_000_000 + b"]" * 5_000_000),
        "escapes": task % (b'"' + b"\\ud83d\\ude00" * 1_000_000 + b'"'),
    }
    over = asyncio.Event()
    async with httpx.AsyncClient(base_url=client.base_url, timeout=120, trust_env=False, headers=HEADERS) as prober:
        livez = asyncio.create_task(slowest_livez(prober, over))
        answers = {
            name: set(await asyncio.gather(*(post(client, body) for _ in range(4)))) for name, body in attacks.items()
        }
        batches = await asyncio.gather(*(post(client, b"[" + b"1," * 200_000, "/tasks/batch") for _ in range(2)))
        over.set()
        slowest = await livez
    assert {name for name, statuses in answers.items() if 202 in statuses} == {"as many values as may be"}
    assert set().union(*answers.values()) <= {202, 400, 413, 422, 503}
    assert batches == [202, 202]
    assert peak_mib(child) < MOST_MIB
    assert slowest < 10  # 88 s without the bounds; generous, since the machine may be busy


async def test_large_mails_together_stay_within_the_memory_of_their_pod(
    ingest: tuple[Child, httpx.AsyncClient],
) -> None:
    child, client = ingest
    forget_the_peak(child)
    body = (
        b'{"taskType":"email","payload":{"to":"ann@example.org","subject":"x","body":"y","attachments":'
        b'[{"filename":"a","content":"%s"}]}}' % (b"QUJD" * ((MOST_BYTES - 1000) // 4))
    )
    statuses = await asyncio.gather(*(post(client, body) for _ in range(10)))
    assert 202 in statuses
    assert set(statuses) <= {202, 503}
    task = (await client.get("/tasks?taskType=email&limit=1")).json()["items"][0]["taskId"]
    shown = await asyncio.gather(*(client.get(f"/tasks/{task}") for _ in range(10)))
    assert {answer.status_code for answer in shown} <= {200, 503}
    assert any(answer.status_code == 200 and len(answer.content) > MOST_BYTES - 1000 for answer in shown)
    assert peak_mib(child) < 512


async def test_rows_that_would_fill_a_workers_memory_end_as_dead_letters(
    stack: Stack, ingest: tuple[Child, httpx.AsyncClient]
) -> None:
    child = stack.spawn("process-simulated", "attacked-worker")
    crowded = '{"x":[' + "{}," * 20_000 + "{}]}"  # they come with their claims, a megabyte of objects each
    refused, taken = [uuid7() for _ in range(3)], [uuid7() for _ in range(60)]
    for tasks, payload in ((refused, LISTS.decode()), (taken, crowded)):
        for task in tasks:
            await stack.sql.execute(TASK, task, payload)
            await stack.sql.execute(DUE, task)
    rows = await stack.until_all(refused, "dead")
    assert {row["error_class"] for row in rows} == {"InvalidPayload"}
    await stack.until_all(taken, "succeeded")
    assert peak_mib(child) < 256
    child.kill()
