"""A batch: each item for itself, in order, with bounded memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from taskflux.http.submissions import Limits
from taskflux.store.errors import StoreUnavailable
from tests.unit.http.memory import Fixture, problem

GOOD = {"taskType": "email", "payload": {"to": "ada@example.org", "subject": "hello"}}
FORMS = ["array", "ndjson"]


async def send(http: Fixture, form: str, items: Sequence[object], size: int = 1000) -> httpx.Response:
    texts = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]
    body = b"[" + b",".join(texts) + b"]" if form == "array" else b"\n".join(texts)
    return await post(http, form, body, size)


async def post(http: Fixture, form: str, body: bytes, size: int = 1000) -> httpx.Response:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    media_type = "application/json" if form == "array" else "application/x-ndjson"
    return await http.client.post("/tasks/batch", content=parts(), headers={"content-type": media_type})


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 202
    if response.headers["content-type"] == "application/json":
        found: list[dict[str, Any]] = response.json()
    else:
        assert response.headers["content-type"] == "application/x-ndjson"
        found = [json.loads(line) for line in response.text.splitlines()]
    assert [result["index"] for result in found] == list(range(len(found)))
    return found


@pytest.mark.parametrize("form", FORMS)
async def test_bad_items_are_named_and_good_ones_accepted(form: str, http: Fixture) -> None:
    items: list[Any] = [
        GOOD,
        {"taskType": "email", "payload": {"to": 5, "subject": "x"}},
        {"taskType": "fax", "payload": 1},
        b'{"taskType": nope}',
        "text",
        {"payload": "x" * 2000},
        {"payload": "last"},
    ]
    found = results(await send(http, form, items))
    assert [result["status"] for result in found] == [202, 422, 422, 400, 422, 413, 202]
    accepted = {task.type: task for task in http.intake.accepted}  # at once, so in any order
    assert found[0] == {
        "index": 0,
        "status": 202,
        "taskId": str(accepted["email"].id),
        "taskType": "email",
        "createdAt": "2030-01-01T00:00:00.000000Z",
    }
    assert found[1]["problem"]["errors"][0]["field"] == "payload.to"
    assert found[2]["problem"]["type"] == "/problems/unknown-task-type"
    assert accepted.keys() == {"email", "simulated"}
    assert {what: count for what, count in http.submitted.items() if what[0] != "unknown"} == {
        ("email", "accepted"): 1,
        ("simulated", "accepted"): 1,
    }
    assert sum(count for what, count in http.submitted.items() if what[0] == "unknown") == 5


@pytest.mark.parametrize("form", FORMS)
async def test_the_order_of_the_items_is_the_order_of_the_answers(form: str) -> None:
    http = Fixture(Limits())
    found = results(await send(http, form, [{"payload": str(n)} for n in range(3000)], size=64_000))
    by_id = {str(task.id): task.payload for task in http.intake.accepted}
    assert [by_id[result["taskId"]] for result in found] == [f'"{n}"' for n in range(3000)]


@pytest.mark.parametrize("form", FORMS)
async def test_so_many_items_are_in_flight_and_no_more(form: str) -> None:
    http = Fixture(Limits(batch_items_in_flight=500))
    found = results(await send(http, form, [{"payload": str(n)} for n in range(5000)], size=64_000))
    assert len(found) == 5000
    assert http.intake.most_in_flight == 500


@pytest.mark.parametrize("form", FORMS)
async def test_reading_waits_while_too_much_is_in_flight(form: str) -> None:
    http = Fixture(Limits(batch_items_in_flight=300))
    http.intake.gate.clear()
    read = 0
    stalled = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        nonlocal read
        yield b"[" if form == "array" else b""
        for _ in range(2000):
            yield b'{"payload":"x"}' + (b"," if form == "array" else b"\n")
            read += 1
            if read >= 300:
                stalled.set()
        yield b'{"payload":"x"}' + (b"]" if form == "array" else b"")

    media_type = "application/json" if form == "array" else "application/x-ndjson"
    asking = asyncio.create_task(
        http.client.post("/tasks/batch", content=parts(), headers={"content-type": media_type})
    )
    await asyncio.wait_for(stalled.wait(), 5)
    for _ in range(50):
        await asyncio.sleep(0)
    assert read <= 302
    http.intake.gate.set()
    assert len(results(await asking)) == 2001


@pytest.mark.parametrize("form", FORMS)
async def test_each_item_may_have_an_idempotency_key(form: str, http: Fixture) -> None:
    await http.submit(GOOD, Idempotency_Key="a")
    items = [
        {**GOOD, "idempotencyKey": "a"},
        {**GOOD, "idempotencyKey": "b"},
        {**GOOD, "idempotencyKey": "b"},
        {"payload": "other", "idempotencyKey": "a"},
        {**GOOD, "idempotencyKey": ""},
        {**GOOD, "idempotencyKey": 5},
    ]
    found = results(await send(http, form, items, size=10))
    assert [result["status"] for result in found] == [202, 202, 202, 422, 422, 422]
    assert found[0]["taskId"] == str(http.intake.accepted[0].id)
    assert [result.get("idempotentReplay") for result in found[:3]] == [True, None, True]
    assert found[3]["problem"]["type"] == "/problems/idempotency-key-reused"
    assert found[4]["problem"]["errors"][0]["field"] == "idempotencyKey"
    assert len(http.intake.accepted) == 2


async def test_the_header_would_name_all_items_so_it_is_refused(http: Fixture) -> None:
    headers = {"content-type": "application/json", "idempotency-key": "k"}
    response = await http.client.post("/tasks/batch", content=b"[]", headers=headers)
    assert response.status_code == 400
    assert "idempotencyKey" in problem(response)["detail"]


async def test_another_content_type_is_a_415_that_names_both(http: Fixture) -> None:
    response = await http.client.post("/tasks/batch", content=b"[]", headers={"content-type": "text/csv"})
    assert response.status_code == 415
    assert "application/json or application/x-ndjson" in problem(response)["detail"]


@pytest.mark.parametrize(("form", "text"), [("array", "[]\n"), ("ndjson", "")])
async def test_a_batch_of_nothing_is_answered_with_nothing(form: str, text: str, http: Fixture) -> None:
    response = await send(http, form, [])
    assert (response.status_code, response.text) == (202, text)


@pytest.mark.parametrize("body", [b"", b'{"payload": "x"}', b"not json", b"["])
async def test_an_array_that_does_not_even_begin_is_a_400(body: bytes, http: Fixture) -> None:
    response = await post(http, "array", body)
    assert (response.status_code, problem(response)["type"]) == (400, "/problems/malformed-json")


@pytest.mark.parametrize("tail", [b"", b', {"payload"', b"] x", b", }, 1]"])
@pytest.mark.parametrize("size", [1, 1000])
async def test_a_broken_array_ends_with_an_answer_that_says_so(tail: bytes, size: int, http: Fixture) -> None:
    whole = b",".join([b'{"payload": "x"}'] * 3)
    found = results(await post(http, "array", b"[" + whole + b"," + b'{"payload": "y"}' + tail, size))
    assert [result["status"] for result in found[:3]] == [202] * 3
    assert found[-1]["status"] == 400
    assert found[-1]["problem"]["type"] == "/problems/malformed-json"


async def test_a_store_that_becomes_unavailable_midway_is_reported_item_by_item() -> None:
    http = Fixture(Limits())
    http.intake.trouble, http.intake.fail_from = StoreUnavailable("gone"), 600
    found = results(await send(http, "ndjson", [{"payload": str(n)} for n in range(2000)], size=64_000))
    statuses = [result["status"] for result in found]
    assert statuses.count(202) == len(http.intake.accepted) == 600
    assert statuses == sorted(statuses)
    assert found[600]["problem"]["retryAfter"] == 5


async def test_the_items_of_a_batch_stand_in_the_trace_of_their_request(http: Fixture) -> None:
    for _ in range(2):
        await asyncio.create_task(send(http, "ndjson", [{"payload": "a"}, {"payload": "b"}]))
    first, second, third, fourth = (task.traceparent for task in http.intake.accepted)
    assert first == second != third == fourth


async def test_when_the_client_disconnects_nothing_further_is_started(http: Fixture) -> None:
    messages = [
        {"type": "http.request", "body": b'{"payload": "a"}\n{"payload": "b"}\n{"payl', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def keep(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/x-ndjson")]
    scope = {"type": "http", "method": "POST", "path": "/tasks/batch", "headers": headers, "query_string": b""}
    await http.app(scope, receive, keep)
    assert http.intake.accepted == []
    assert sent == []


async def test_answers_wait_for_the_end_of_the_request_up_to_a_limit() -> None:
    """A client that reads only once it has sent everything gets through; a huge batch does not fill our memory."""
    sent_before_end: dict[int, int] = {}
    for hold in (1 << 20, 1000):
        http = Fixture(Limits(batch_hold_bytes=hold))
        left = 40
        sent: list[Any] = []

        async def receive() -> Any:
            nonlocal left
            left -= 1
            await asyncio.sleep(0)
            if left == 0:
                sent_before_end[hold] = len(sent)  # noqa: B023 - called in this turn of the loop only
            return {"type": "http.request", "body": b'{"payload":"x"}\n' * 50, "more_body": left > 0}

        async def keep(message: Any) -> None:
            sent.append(message)  # noqa: B023 - called in this turn of the loop only

        headers = [(b"content-type", b"application/x-ndjson")]
        scope = {"type": "http", "method": "POST", "path": "/tasks/batch", "headers": headers, "query_string": b""}
        await http.app(scope, receive, keep)
        assert sum(message.get("body", b"").count(b"\n") for message in sent) == 2000
    assert sent_before_end[1 << 20] == 0
    assert sent_before_end[1000] > 3


@pytest.mark.parametrize("form", FORMS)
async def test_the_answer_to_a_batch_of_bad_items_is_bounded(form: str) -> None:
    """40 KB of `1,1,1,…` were answered with 4.4 MB."""
    http = Fixture(Limits())
    response = await send(http, form, [1] * 20_000)
    found = results(response)
    assert [result["status"] for result in found] == [422] * 20_000
    assert len(response.content) < 750_000
    told = [result for result in found if "problem" in result]
    assert told == found[: len(told)]
    assert 100 < len(told) < 1000
    assert found[-1] == {"index": 19_999, "status": 422}


async def test_a_batch_in_which_too_many_items_have_failed_is_read_no_further() -> None:
    http = Fixture(Limits())
    response = await send(http, "ndjson", [1] * 120_000 + [GOOD], size=64_000)
    found = results(response)
    assert 50_000 < len(found) < 90_000
    assert found[-1]["problem"]["type"] == "/problems/too-large"
    assert "send the items without an answer again" in found[-1]["problem"]["detail"]
    assert http.intake.accepted == []
    assert len(response.content) < 3_000_000


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("announced", [True, False])
async def test_a_batch_has_so_many_bytes_and_no_more(form: str, announced: bool) -> None:
    http = Fixture(Limits(max_body_bytes=10_000))
    if announced:
        headers = {"content-type": "application/json"}
        response = await http.client.post("/tasks/batch", content=b"[1" + b" " * 10_000, headers=headers)
        assert (response.status_code, problem(response)["type"]) == (413, "/problems/too-large")
    else:
        found = results(await send(http, form, [{"payload": "x" * 90}] * 200))
        assert [result["status"] for result in found] == [202] * len(http.intake.accepted) + [413]
        assert 80 < len(http.intake.accepted) < 100


async def test_a_batch_that_meets_too_much_in_flight_says_so_and_where() -> None:
    http = Fixture(Limits(bytes_in_flight=1_000_000))
    http.intake.gate.clear()
    body = b'{"payload":"' + b"x" * 840_000 + b'"}'
    other = asyncio.create_task(http.client.post("/tasks", content=body, headers={"content-type": "application/json"}))
    await http.intake.entered.acquire()
    batch = asyncio.create_task(send(http, "ndjson", [{"payload": "x" * 990}] * 200))
    await http.intake.entered.acquire()
    http.intake.gate.set()
    await other
    statuses = [result["status"] for result in results(await batch)]
    assert statuses == sorted(statuses)


async def test_an_item_for_which_there_is_no_room_is_to_be_sent_again_and_the_others_are_accepted() -> None:
    http = Fixture(Limits(bytes_in_flight=1_000_000))
    found = results(await send(http, "ndjson", [GOOD, {"payload": [0] * 6_000}, GOOD], size=20_000))
    assert [result["status"] for result in found] == [202, 503, 202]
    assert found[1]["problem"]["type"] == "/problems/busy"
    assert found[1]["problem"]["detail"].endswith(": send this item again")
    assert found[1]["problem"]["retryAfter"] == 1


async def test_a_batch_that_is_read_no_further_for_lack_of_room_says_what_to_send_again() -> None:
    http = Fixture(Limits(bytes_in_flight=200_000, batch_items_in_flight=10_000))
    http.intake.gate.clear()
    batch = asyncio.create_task(send(http, "ndjson", [{"payload": "x" * 90}] * 3_000, size=100_000))
    await http.intake.entered.acquire()
    http.intake.gate.set()
    last = results(await batch)[-1]
    assert (last["status"], last["problem"]["type"]) == (503, "/problems/busy")
    assert "send the items without an answer again" in last["problem"]["detail"]


@pytest.mark.parametrize("form", ["array", "ndjson"])
async def test_an_item_that_cannot_be_read_is_refused_at_its_field(form: str, http: Fixture) -> None:
    texts = [
        '{"payload": {"name": "\\ud83c"}}',
        '{"payload": "x", "idempotencyKey": "\\udc00"}',
        '{"payload": {"n": ' + "[" * 250 + "]" * 250 + "}}",
        '{"payload": "x"}',
    ]
    body = "[" + ",".join(texts) + "]" if form == "array" else "\n\ufeff".join(texts)  # files that were put together
    answered = results(await post(http, form, ("\ufeff" + body).encode()))
    named = [each["problem"]["errors"][0]["field"] if "problem" in each else None for each in answered]
    assert [each["status"] for each in answered] == [422, 422, 422, 202]
    assert named == ["payload.name", "idempotencyKey", "payload.n", None]
