"""What requests may hold: each of them, and all of them together."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

from taskflux.http.bodies import SMALL, beside_loop, weigh
from taskflux.http.submissions import Limits
from taskflux.tasks.bounds import USUAL_BYTES, VALUE_BYTES
from taskflux.tasks.model import TaskType
from tests.unit.http.memory import Fixture, problem
from tests.unit.http.stores import ID, row

JSON = {"content-type": "application/json"}


def text_task(size: int) -> bytes:
    body = b'{"payload":"%s"}'
    return body % (b"x" * (size - len(body) + 2))


async def post(http: Fixture, body: bytes) -> httpx.Response:
    return await http.client.post("/tasks", content=body, headers=JSON)


async def test_all_requests_together_hold_so_many_bytes_and_no_more() -> None:
    http = Fixture(Limits(bytes_in_flight=1_000_000))
    http.intake.gate.clear()
    held = [asyncio.create_task(post(http, text_task(200_000))) for _ in range(4)]
    for _ in held:
        await http.intake.entered.acquire()
    refused = await asyncio.wait_for(post(http, text_task(200_000)), 10)
    assert (refused.status_code, problem(refused)["type"]) == (503, "/problems/busy")
    assert refused.headers["retry-after"] == "1"
    http.intake.gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*held)] == [202] * 4
    assert (await post(http, text_task(800_000))).status_code == 202


async def test_large_requests_leave_room_for_small_ones() -> None:
    http = Fixture(Limits(bytes_in_flight=1_000_000))
    http.intake.gate.clear()
    large = asyncio.create_task(post(http, text_task(874_000)))
    await http.intake.entered.acquire()
    assert (await post(http, text_task(SMALL + 1))).status_code == 503
    small = asyncio.create_task(post(http, text_task(SMALL - 1000)))
    await http.intake.entered.acquire()
    http.intake.gate.set()
    assert [(await small).status_code, (await large).status_code] == [202, 202]


@pytest.mark.parametrize("end", ["malformed", "too large", "unknown type", "disconnect", "cancelled", "bad item"])
async def test_what_a_request_holds_is_given_back_however_it_ends(end: str) -> None:
    """Twenty of them together would hold four times what may be in flight."""
    http = Fixture(Limits(max_body_bytes=100_000, bytes_in_flight=500_000))
    bodies = {
        "malformed": text_task(99_000)[:-1],
        "too large": text_task(200_000),
        "unknown type": b'{"taskType": "fax", "payload": "%s"}' % (b"x" * 90_000),
        "bad item": b"[" + b"[1],1," * 1000 + b"]",
    }
    path = "/tasks/batch" if end == "bad item" else "/tasks"
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": path, "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    messages: list[dict[str, Any]] = []
    empty = asyncio.Event()

    async def receive() -> Any:
        if not messages:
            empty.set()
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message: Any) -> None:
        pass

    for _ in range(20):
        messages[:] = [{"type": "http.request", "body": bodies.get(end, b"x" * 99_000), "more_body": end not in bodies}]
        if end == "disconnect":
            messages.insert(0, {"type": "http.disconnect"})
        serving = asyncio.create_task(http.app(dict(scope), receive, send))
        if end == "cancelled":
            await empty.wait()
            serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert (await post(http, text_task(99_000))).status_code == 202


async def test_values_weigh_more_than_their_bytes() -> None:
    http = Fixture(Limits(bytes_in_flight=1_000_000))
    count = 700_000 // VALUE_BYTES
    assert (await post(http, b'{"payload":"x","metadata":{"a":[' + b"[]," * count + b"[]]}}")).status_code == 202
    crowded = b'{"taskType":"simulated","payload":[' + b"[]," * (2 * count) + b"[]]}"
    assert (await post(http, crowded)).status_code == 503


async def test_a_task_may_hold_so_many_values_and_no_more(http: Fixture) -> None:
    http = Fixture(Limits())
    accepted = b'{"taskType":"simulated","payload":[' + b"0," * 99_996 + b"0]}"
    assert (await post(http, accepted)).status_code == 202
    refused = await post(http, b'{"taskType":"simulated","payload":[' + b"[]," * 150_000 + b"[]]}")
    assert (refused.status_code, problem(refused)["type"]) == (413, "/problems/too-large")
    assert "100,000 values" in problem(refused)["detail"]


async def test_a_payload_has_no_more_bytes_than_its_type_declares() -> None:
    http = Fixture(Limits())
    http.source.types["wide"] = TaskType("wide", "{}", 3, "resend", None, max_bytes=3_000_000)
    big = "x" * 2_000_000
    assert (await http.submit({"taskType": "wide", "payload": big})).status_code == 202
    assert (await http.submit({"taskType": "simulated", "payload": "x" * (USUAL_BYTES - 2)})).status_code == 202
    refused = await http.submit({"taskType": "simulated", "payload": "x" * (USUAL_BYTES - 1)})
    assert (refused.status_code, "1,048,576 at most" in problem(refused)["detail"]) == (413, True)
    items = [{"taskType": name, "payload": big} for name in ("wide", "simulated")]
    batch = await http.client.post("/tasks/batch", json=items)
    assert [result["status"] for result in batch.json()] == [202, 413]


async def test_large_work_is_done_beside_the_loop() -> None:
    assert await beside_loop(threading.get_ident) != threading.get_ident()


async def test_a_stored_payload_out_of_bounds_is_shown_as_a_text(http: Fixture) -> None:
    crowded = "[" + "[]," * 200_000 + "[]]"
    http.tasks.rows[ID] = row(payload=crowded)
    assert (await http.client.get(f"/tasks/{ID}")).json()["payload"] == crowded


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/resolve")])
async def test_a_task_is_shown_only_while_there_is_room_for_it(method: str, path: str) -> None:
    http = Fixture(Limits(bytes_in_flight=1_000_000))
    http.tasks.rows[ID] = row(payload='"' + "x" * 400_000 + '"', state="uncertain" if path else "scheduled")
    asked = {"outcome": "dead"} if path else None
    answer = await http.client.request(method, f"/tasks/{ID}{path}", json=asked)
    assert (answer.status_code, problem(answer)["type"]) == (503, "/problems/busy")
    assert http.tasks.rows[ID]["state"] == (
        "uncertain" if path else "scheduled"
    )  # nothing is done that cannot be answered
    http.tasks.rows[ID] = row(payload='"' + "x" * 200_000 + '"', state="uncertain" if path else "scheduled")
    assert (await http.client.request(method, f"/tasks/{ID}{path}", json=asked)).status_code == 200


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("x" * 10_000, 1),
        ("é" * 10_000, 0),
        ("x" * 10_000 + "中", 2),
        ("x" * 10_000 + "🎉", 4),
        ("中" * 10_000, 0),  # two bytes of memory for three of the body
        ("🎉" * 10_000, 0),
        ("x" * 10_000 + r"\u4e2d", 2),
        ("x" * 10_000 + r"\uD83C\uDF89", 4),
    ],
)
def test_a_text_weighs_as_much_as_its_widest_character_makes_it(text: str, width: int) -> None:
    weight = weigh(f'"{text}"'.encode()) - VALUE_BYTES
    assert weight == pytest.approx(2 * max(0, width - 1) * 10_000 / 5, abs=50)
