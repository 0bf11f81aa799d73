"""Reading a task, the probes, and everything that is not there."""

from __future__ import annotations

import pytest

from taskflux.http.requests import incoming
from taskflux.store.errors import StoreUnavailable
from taskflux.telemetry.outages import Link
from tests.unit.http.memory import Fixture, problem
from tests.unit.http.stores import ID, row


async def test_a_task_is_read_by_its_id(http: Fixture) -> None:
    http.tasks.rows[ID] = row(state="running", attempts=1)
    response = await http.client.get(f"/tasks/{ID}")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json()["status"] == "running"


@pytest.mark.parametrize("name", [str(ID), "batch", "x", "{01890a5d-ac96-774b-bcce-b302099a8057}", str(ID)[:-1] + "g"])
async def test_an_unknown_id_is_a_404(name: str, http: Fixture) -> None:
    response = await http.client.get(f"/tasks/{name}")
    assert (response.status_code, problem(response)["type"]) == (404, "/problems/unknown-task")


async def test_an_unavailable_store_is_a_503_to_readers_too(http: Fixture) -> None:
    http.tasks.trouble = StoreUnavailable("away")
    response = await http.client.get(f"/tasks/{ID}")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    problem(response)


@pytest.mark.parametrize("path", ["/index.html", "/task", "/tasks/", "/tasks/a/b"])
async def test_an_unknown_address_is_a_404(path: str, http: Fixture) -> None:
    response = await http.client.get(path)
    assert response.status_code == 404
    assert problem(response)["type"] in ("/problems/not-found", "/problems/unknown-task")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", "/tasks", "POST"), ("PUT", "/tasks/batch", "POST"), ("POST", "/livez", "GET"), ("POST", "/", "GET, HEAD")],
)
async def test_an_unknown_method_is_a_405(method: str, path: str, allowed: str, http: Fixture) -> None:
    response = await http.client.request(method, path)
    assert (response.status_code, problem(response)["type"]) == (405, "/problems/method-not-allowed")
    assert allowed in response.headers["allow"]


async def test_livez_and_metrics_answer_whatever_else_happens(http: Fixture) -> None:
    http.ready = False
    assert (await http.client.get("/livez")).text == "ok\n"
    response = await http.client.get("/metrics")
    assert response.text == "taskflux_submitted_total 1\n"
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_readyz_says_when_it_has_started(http: Fixture) -> None:
    http.ready = False
    response = await http.client.get("/readyz")
    assert (response.status_code, problem(response)["type"]) == (503, "/problems/not-started")
    http.ready = True
    assert (await http.client.get("/readyz")).status_code == 200


async def test_readyz_says_why_kafka_cannot_be_reached_and_stays_ready(http: Fixture) -> None:
    http.ready = True
    kafka = Link("Kafka")
    kafka.failed("refused", "nothing listens at 127.0.0.1:1", "start it")
    response = await http.client.get("/readyz")
    assert (response.status_code, response.text) == (200, "ok\nwaiting for Kafka: nothing listens at 127.0.0.1:1\n")
    kafka.works()
    assert (await http.client.get("/readyz")).text == "ok\n"


TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"),
        (f" 00-{TRACE}-{PARENT}-03 ", f"00-{TRACE}-{PARENT}-03"),
        (f"00-{TRACE}-{PARENT}-ff", f"00-{TRACE}-{PARENT}-03"),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", f"00-{TRACE}-{PARENT}-01"),
        (f"cc-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_the_standard_says(header: str, expected: str | None) -> None:
    assert incoming(header.encode()) == expected
