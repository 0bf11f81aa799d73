"""A request ends with its client, and begins nothing once its time is up; what was accepted is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from starlette.requests import ClientDisconnect

from taskflux.http.problems import NOT_BEGUN, Problem
from taskflux.http.requests import Client, Requests, client_of
from taskflux.http.submissions import Limits
from taskflux.tasks.model import TaskType
from tests.unit.http.letters import letter
from tests.unit.http.memory import Fixture
from tests.unit.http.stores import ID, row

FAX = TaskType("fax", "{}", 3, "resend", None)
LINES = "application/x-ndjson"


class Asking:
    """A request whose client the test plays: it sends `body`, and more only if it says so."""

    def __init__(self, http: Fixture, method: str, path: str, body: bytes = b"", **options: Any) -> None:
        self.sent: list[dict[str, Any]] = []
        self._messages = [{"type": "http.request", "body": body, "more_body": options.pop("more", False)}]
        media_type = options.pop("media_type", "application/json").encode()
        self._late_after_body: str | None = options.pop("late_after_body", None)
        scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "scheme": "http", "query_string": b""}
        scope["headers"] = [(b"content-type", media_type)]
        self.client = client_of(scope)
        self.task = asyncio.create_task(Requests(http.app)(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if self._messages:
            if self._late_after_body:
                self.client.expire(self._late_after_body)
            return self._messages.pop(0)
        return await asyncio.Event().wait()

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def status(self) -> int:
        await asyncio.wait_for(self.task, 10)
        status: int = self.sent[0]["status"]
        return status

    async def results(self) -> list[Any]:
        assert await self.status() == 202
        body = b"".join(message.get("body", b"") for message in self.sent)
        return [json.loads(line) for line in body.splitlines()]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never happens")


def submission(kind: str, task_type: str = "simulated") -> tuple[str, bytes]:
    item = {"taskType": task_type, "payload": "x"}
    if kind == "single":
        return "/tasks", json.dumps(item).encode()
    return "/tasks/batch", json.dumps([item] * 600).encode()


@pytest.mark.parametrize("kind", ["single", "batch"])
async def test_a_type_that_appears_after_the_client_has_disconnected_accepts_nothing(kind: str) -> None:
    http = Fixture(Limits())
    http.source.gate.clear()
    path, body = submission(kind, "fax")
    asking = Asking(http, "POST", path, body)
    await http.source.looks.acquire()
    http.source.types["fax"] = FAX
    asking.client.leave()
    http.source.gate.set()
    await asyncio.wait_for(asking.task, 10)
    assert await http.registry.find("fax") is not None
    assert http.intake.accepted == []
    assert (await http.submit({"taskType": "fax", "payload": "x"})).status_code == 202


@pytest.mark.parametrize("kind", ["single", "batch"])
async def test_what_waits_for_postgresql_is_cancelled_when_the_client_disconnects(kind: str) -> None:
    http = Fixture(Limits())
    http.intake.gate.clear()
    path, body = submission(kind)
    asking = Asking(http, "POST", path, body)
    await until(lambda: http.intake.in_flight > 0)
    asking.client.leave()
    await asyncio.wait_for(asking.task, 10)
    http.intake.gate.set()
    await until(lambda: http.intake.in_flight == 0)
    assert http.intake.accepted == []


async def test_a_batch_that_ends_before_its_items_gives_back_what_it_held_and_no_more() -> None:
    http = Fixture(Limits())
    http.source.gate.clear()
    asking = Asking(http, "POST", *submission("batch", "fax"))
    await http.source.looks.acquire()
    flight = http.app.state.flight
    held = flight.bytes
    asking.client.leave()
    await asyncio.wait_for(asking.task, 10)
    http.source.gate.set()
    for _ in range(100):
        await asyncio.sleep(0)
    assert (held > 0, flight.bytes) == (True, 0)


async def test_a_batch_looks_once_for_all_types_that_it_does_not_know() -> None:
    http = Fixture(Limits())
    await http.registry.refresh()
    began = http.clock.now
    items = [{"taskType": f"fax{n % 7}", "payload": n} for n in range(3000)]
    response = await http.client.post("/tasks/batch", json=items)
    assert {result["status"] for result in response.json()} == {422}
    told = {result["problem"]["type"] for result in response.json() if "problem" in result}
    assert told == {"/problems/unknown-task-type"}
    assert (http.source.asked, http.clock.now - began) == (2, 1.0)


async def test_when_its_time_is_up_a_batch_answers_what_it_accepted_and_begins_no_more() -> None:
    http = Fixture(Limits(batch_items_in_flight=250))
    http.intake.gate.clear()
    body = b'{"payload": "x"}\n' * 600
    asking = Asking(http, "POST", "/tasks/batch", body, media_type=LINES, more=True)
    await until(lambda: http.intake.in_flight == 250)
    asking.client.expire("it took too long")
    http.intake.gate.set()
    results = await asking.results()
    assert [result["status"] for result in results] == [202] * 250 + [503] * 350 + [408]
    assert len(http.intake.accepted) == 250
    assert results[250]["problem"]["type"] == "/problems/not-begun"
    assert results[250]["problem"]["detail"] == "it took too long"
    assert results[-1]["problem"]["type"] == "/problems/request-timeout"


async def test_a_batch_that_stalls_is_answered_and_not_waited_for(http: Fixture) -> None:
    asking = Asking(http, "POST", "/tasks/batch", b'{"payload": "x"}\n{"pay', media_type=LINES, more=True)
    await until(lambda: len(http.intake.accepted) == 1)
    asking.client.expire("it took too long")
    assert [result["status"] for result in await asking.results()] == [202, 408]


async def test_a_request_that_stalls_is_a_408(http: Fixture) -> None:
    asking = Asking(http, "POST", "/tasks", b'{"pay', more=True)
    await asyncio.sleep(0)
    asking.client.expire("it took too long")
    assert await asking.status() == 408


async def test_a_type_that_cannot_be_read_in_time_is_a_503(http: Fixture) -> None:
    http.source.gate.clear()
    asking = Asking(http, "POST", *submission("single", "fax"))
    await http.source.looks.acquire()
    asking.client.expire("it took too long")
    assert await asking.status() == 503
    assert (b"retry-after", b"1") in asking.sent[0]["headers"]
    http.source.gate.set()


@pytest.mark.parametrize("error", [KeyError("ada@example.org"), ZeroDivisionError()])
async def test_an_error_in_one_item_does_not_affect_the_others(
    error: Exception, http: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    http.intake.trouble, http.intake.fail_from = error, 3
    response = await http.client.post("/tasks/batch", json=[{"payload": str(n)} for n in range(5)])
    assert sorted(result["status"] for result in response.json()) == [202, 202, 202, 500, 500]
    assert caplog.text.count(f"{type(error).__name__} while accepting an item") == 1  # both items met the same one
    assert "ada@example.org" not in caplog.text


DECISIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("DELETE", f"/tasks/{ID}", {}),
    ("POST", f"/tasks/{ID}/resolve", {"outcome": "dead"}),
    ("POST", "/dead-letters/{letter}/replay", {}),
    ("POST", "/dead-letters/{letter}/discard", {"reason": "x"}),
    ("POST", "/dead-letters/replay", {"filter": {"taskType": "email"}}),
]


def to_decide(method: str, http: Fixture) -> tuple[UUID, Callable[[], bool]]:
    """The id of a dead letter, beside a task, and whether both stand as before."""
    state = "uncertain" if method == "POST" else "scheduled"
    http.tasks.rows[ID] = row(state=state)
    found = http.letters.put(letter())

    def as_before() -> bool:
        states = http.tasks.rows[ID]["state"], http.letters.rows[found]["state"]
        return (*states, http.letters.sent, http.letters.bulk) == (state, "open", [], {})

    return found, as_before


@pytest.mark.parametrize(("method", "path", "body"), DECISIONS)
async def test_nothing_is_decided_for_a_client_that_has_disconnected(
    method: str, path: str, body: dict[str, Any], http: Fixture
) -> None:
    found, as_before = to_decide(method, http)
    asking = Asking(http, method, path.format(letter=found), json.dumps(body).encode())
    asking.client.leave()
    await asyncio.wait_for(asking.task, 10)
    assert as_before()


@pytest.mark.parametrize(("method", "path", "body"), DECISIONS)
async def test_nothing_is_decided_once_the_time_is_up(
    method: str, path: str, body: dict[str, Any], http: Fixture
) -> None:
    found, as_before = to_decide(method, http)
    late = "it took too long"
    asking = Asking(http, method, path.format(letter=found), json.dumps(body).encode(), late_after_body=late)
    if method == "DELETE":  # its body is not read
        asking.client.expire(late)
    assert await asking.status() == 503
    told = json.loads(asking.sent[1]["body"])
    assert (told["type"], told["detail"]) == ("/problems/not-begun", late)
    assert as_before()


class Leaving(dict[Any, Any]):
    """Rows whose reader's client disconnects as soon as the first is read."""

    leave: Callable[[], None]

    def get(self, *key: Any) -> Any:
        self.leave()
        return super().get(*key)


@pytest.mark.parametrize(("verb", "body"), [("replay", b"{}"), ("discard", b'{"reason": "x"}')])
async def test_nothing_is_done_with_a_dead_letter_once_its_client_has_disconnected(
    verb: str, body: bytes, http: Fixture
) -> None:
    found = http.letters.put(letter())
    http.letters.rows = rows = Leaving(http.letters.rows)
    asking = Asking(http, "POST", f"/dead-letters/{found}/{verb}", body)
    rows.leave = asking.client.leave
    await asyncio.wait_for(asking.task, 10)
    assert (rows[found]["state"], http.letters.sent) == ("open", [])


async def test_what_was_read_in_time_and_not_begun_is_not_begun_late(http: Fixture) -> None:
    known = {"taskType": "simulated", "payload": "x"}
    await http.registry.refresh()
    http.source.gate.clear()
    asking = Asking(http, "POST", "/tasks/batch", json.dumps([known, known | {"taskType": "fax"}]).encode())
    await until(lambda: http.source.asked == 2)
    asking.client.expire("it took too long")
    assert await asking.status() == 202
    assert http.intake.accepted == []
    http.source.gate.set()


async def test_a_wait_ends_by_its_client_and_by_nothing_else() -> None:
    client = Client()
    client.expire("it took too long")
    with client.until_disconnected():
        await asyncio.sleep(0)
    with pytest.raises(Problem) as refused, client.until_late():
        raise AssertionError("nothing begins")
    assert (refused.value.kind, refused.value.detail) == (NOT_BEGUN, "it took too long")
    with pytest.raises(TimeoutError), client.until_disconnected():
        raise TimeoutError


async def test_of_two_waits_in_each_other_both_end() -> None:
    client = Client()

    async def wait() -> None:
        with client.until_late(), client.until_disconnected():
            client.expire("it took too long")
            client.leave()
            await asyncio.Event().wait()

    with pytest.raises(ClientDisconnect):
        await wait()
