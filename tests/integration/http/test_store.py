"""Submitting and reading over HTTP, down to the tables."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from taskflux.http.submissions import Limits
from taskflux.local.servers import PostgresServer
from taskflux.store.database import Database
from taskflux.store.migrate import migrate
from taskflux.store.settings import PostgresSettings
from taskflux.store.tasks import TaskTypes
from taskflux.tasks.model import TaskType
from tests.integration.http.serving import Served, application, served


@pytest.fixture
async def http(database: Database) -> AsyncIterator[Served]:
    async with served(await application(database, Limits(max_body_bytes=4 << 20, max_item_bytes=10_000))) as server:
        yield server


async def task_count(database: Database) -> int:
    [row] = await database._pool.fetch("SELECT count(*) FROM tasks")  # type: ignore[union-attr]
    return int(row[0])


async def test_a_submitted_task_can_be_read(http: Served) -> None:
    body = {
        "taskType": "email",
        "payload": {"to": "Grüße \ud83c\udf89", "x": [1.5, None, {"a\u0000b": True}]},
        "scheduleAt": "2031-01-31T09:00:00+01:00",
        "expiresAt": "2032-01-31T09:00:00Z",
        "key": "kunde–7",
        "maxAttempts": 2,
        "metadata": {"order": "Ä\u0000"},
    }
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    text = json.dumps(body)
    headers = {"traceparent": trace, "content-type": "application/json"}
    response = await http.client.post("/tasks", content=text, headers=headers)
    accepted = response.json()
    assert (response.status_code, accepted["status"]) == (202, "scheduled")
    response = await http.client.get(response.headers["location"])
    task = response.json()
    assert response.status_code == 200
    assert task["taskId"] == accepted["taskId"]
    assert task["createdAt"] == accepted["createdAt"]
    assert task["payload"] == json.loads(text)["payload"]
    assert task["metadata"] == body["metadata"]
    assert (task["key"], task["maxAttempts"], task["attempts"], task["retryCount"]) == ("kunde–7", 2, 0, 0)
    assert (task["dueAt"], task["expiresAt"]) == ("2031-01-31T08:00:00.000000Z", "2032-01-31T09:00:00.000000Z")
    assert task["traceId"] == trace[3:35]
    assert (task["result"], task["error"]) == (None, None)
    [entry] = task["timeline"]
    assert (entry["event"], entry["state"], entry["attempt"]) == ("accepted", "scheduled", 0)


async def test_any_json_text_is_stored_as_it_came(http: Served) -> None:
    for payload in [
        '"\\ud83d\\ude00 \\u0000"',
        '{"\\u0000":"\\uffff"}',
        "[]",
        "1e300",
        "123456789012345678901234567890",
    ]:
        body = f'{{"taskType":"simulated","payload":{payload}}}'
        response = await http.client.post("/tasks", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 202
        task = await http.client.get(response.headers["location"])
        assert task.json()["payload"] == json.loads(payload)


async def test_a_hundred_simultaneous_submits_of_one_key_make_one_task(http: Served, database: Database) -> None:
    async def submit() -> Any:
        return await http.client.post("/tasks", json={"payload": "once"}, headers={"idempotency-key": "k"})

    responses = await asyncio.gather(*(submit() for _ in range(100)))
    assert {response.status_code for response in responses} == {202}
    assert len({response.content for response in responses}) == 1
    assert sum("idempotent-replay" not in response.headers for response in responses) == 1
    assert await task_count(database) == 1


async def test_a_key_with_another_body_is_refused_and_makes_no_task(http: Served, database: Database) -> None:
    async def submit(n: int) -> int:
        response = await http.client.post("/tasks", json={"payload": str(n)}, headers={"idempotency-key": "k"})
        return response.status_code

    statuses = await asyncio.gather(*(submit(n) for n in range(20)))
    assert sorted(statuses) == [202] + [422] * 19
    assert await task_count(database) == 1


async def test_ten_thousand_items_in_an_array_or_in_lines_with_bad_ones_among_them(
    http: Served, database: Database
) -> None:
    def item(n: int) -> str:
        match n % 1000:
            case 7:
                return '{"payload": broken}'
            case 8:
                return json.dumps({"taskType": "email", "payload": {"to": n}})
            case 9:
                return json.dumps({"payload": "x" * 20_000})
            case _:
                return json.dumps({"taskType": "email", "payload": {"to": f"{n}@example.org"}, "metadata": {"n": n}})

    expected = {7: 400, 8: 422, 9: 413}
    items = [item(n) for n in range(10_000)]
    for media_type, body in (
        ("application/json", "[" + ",\n ".join(items) + "]"),
        ("application/x-ndjson", "\n".join(items)),
    ):
        response = await http.client.post("/tasks/batch", content=body, headers={"content-type": media_type})
        assert response.status_code == 202
        assert response.headers["content-type"] == media_type
        lines = media_type.endswith("ndjson")
        results = [json.loads(line) for line in response.text.splitlines()] if lines else response.json()
        assert [result["index"] for result in results] == list(range(10_000))
        assert [result["status"] for result in results] == [expected.get(n % 1000, 202) for n in range(10_000)]
        last = await http.client.get(f"/tasks/{results[-1]['taskId']}")
        assert last.json()["metadata"] == {"n": 9999}
    assert await task_count(database) == 2 * 9_970


async def test_keys_of_a_batch_are_the_keys_of_single_submits(http: Served, database: Database) -> None:
    first = await http.client.post("/tasks", json={"payload": "a"}, headers={"idempotency-key": "k1"})
    items = [{"payload": "a", "idempotencyKey": f"k{n % 50}"} for n in range(500)]
    response = await http.client.post("/tasks/batch", json=items)
    results = response.json()
    assert {result["status"] for result in results} == {202}
    assert len({result["taskId"] for result in results}) == 50
    assert results[1]["taskId"] == first.json()["taskId"]
    assert results[1]["createdAt"] == first.json()["createdAt"]
    assert sum("idempotentReplay" not in result for result in results) == 49
    assert await task_count(database) == 50


async def test_a_type_is_known_once_it_is_registered(http: Served, database: Database) -> None:
    assert (await http.client.post("/tasks", json={"taskType": "resize", "payload": 1})).status_code == 422
    await TaskTypes(database).register(TaskType("resize", '{"type": "integer"}', 3, "resend", None))
    deadline = asyncio.get_running_loop().time() + 5
    while True:
        response = await http.client.post("/tasks", json={"taskType": "resize", "payload": 1})
        if response.status_code == 202:
            break
        assert asyncio.get_running_loop().time() < deadline


async def test_an_unknown_id_is_a_404(http: Served) -> None:
    response = await http.client.get("/tasks/01890a5d-ac96-774b-bcce-b302099a8057")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


async def test_without_postgres_ingest_answers_503_and_accepts_again_when_it_is_back(servers_dir: Path) -> None:
    async with PostgresServer(servers_dir / "interrupted") as postgres:
        settings = PostgresSettings.model_validate({"dsn": postgres.dsn, "connect_timeout": 2, "statement_timeout": 2})
        await migrate(settings)
        database = Database(settings, pool_size=4)
        await database.open()
        async with served(await application(database, patience=0.2)) as http:
            accepted = await http.client.post("/tasks", json={"payload": "before"})
            assert accepted.status_code == 202
            await postgres.stop()
            for response in (
                await http.client.post("/tasks", json={"payload": "while"}, headers={"idempotency-key": "k"}),
                await http.client.get(accepted.headers["location"]),
            ):
                assert (response.status_code, response.headers["retry-after"]) == (503, "5")
                assert response.json()["type"] == "/problems/store-unavailable"
            batch = await http.client.post("/tasks/batch", json=[{"payload": "x"}] * 2000)
            assert [result["status"] for result in batch.json()] == [503] * 2000
            assert (await http.client.get("/livez")).status_code == 200
            await postgres.start()
            again = await http.client.post("/tasks", json={"payload": "while"}, headers={"idempotency-key": "k"})
            assert again.status_code == 202
            assert (await http.client.get(accepted.headers["location"])).json()["payload"] == "before"
        await database.close()
