from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from taskflux.http.app import application, probe_routes
from taskflux.http.requests import Requests
from taskflux.telemetry import logs
from taskflux.telemetry.tracing import TRACE
from tests.unit.world import Clock

SECRET = "bob@example.org"
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def _no_floods() -> Iterator[None]:
    rates = logs.requests.rate, logs.failed_requests.rate
    logs.requests.rate = logs.failed_requests.rate = 1000
    yield
    logs.requests.rate, logs.failed_requests.rate = rates


@pytest.fixture
async def client() -> httpx.AsyncClient:
    async def shown(request: Request) -> Response:
        return Response(TRACE.get())

    async def broken(request: Request) -> Response:
        raise ValueError(SECRET)

    async def metrics(accept: str) -> tuple[bytes, str]:
        return b"", "text/plain"

    app = application(
        [
            Route("/things/{name}", shown),
            Route("/broken", broken, methods=["POST"]),
            *probe_routes(lambda: True, metrics),
        ],
        bytes_in_flight=100_000,
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(Requests(app)), base_url="http://test")


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, object]]:
    return [
        (record.getMessage(), vars(record)["status"])
        for record in caplog.records
        if record.name == "taskflux.http.requests"
    ]


async def test_a_request_is_logged_by_its_route_and_never_by_its_path(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await client.get("/things/bob@example.org", params={"who": "ann@example.org"})
    await client.get("/nothing/bob@example.org")
    await client.get("/broken")
    assert told(caplog) == [("GET /things/{name}", 200), ("GET (no route)", 404), ("GET /broken", 405)]
    mine = [vars(record) for record in caplog.records if record.name == "taskflux.http.requests"]
    assert "example.org" not in str(mine)
    assert "127.0.0.1" not in str(mine)
    assert all(record["duration_ms"] >= 0 for record in mine)


async def test_probes_are_not_logged(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await client.get(path)).status_code == 200
    assert told(caplog) == []


async def test_an_error_is_answered_logged_once_and_kept_from_the_server(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await client.post("/broken")).status_code == 500
    assert told(caplog) == [("POST /broken", 500)]
    faults = [record for record in caplog.records if record.name != "taskflux.http.requests"]
    assert [record.getMessage().splitlines()[0] for record in faults] == ["ValueError while answering POST"]
    assert SECRET not in caplog.text


async def test_above_the_rate_requests_are_counted_and_do_not_hide_errors(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    monkeypatch.setattr(logs, "requests", logs.Sampler(2, clock))
    for _ in range(4):
        await client.get("/things/1")
    await client.post("/broken")
    assert told(caplog) == [("GET /things/{name}", 200), ("GET /things/{name}", 200), ("POST /broken", 500)]
    clock.now += 1
    await client.get("/things/1")
    mine = [vars(record) for record in caplog.records if record.name == "taskflux.http.requests"]
    assert mine[-1]["omitted"] == 2


async def test_every_request_has_a_trace_the_callers_or_its_own(client: httpx.AsyncClient) -> None:
    TRACE.set(None)
    assert (await client.get("/things/1", headers={"traceparent": CALLER})).text == CALLER
    own = (await client.get("/things/1", headers={"traceparent": "nonsense"})).text
    assert len(own) == 55
    assert own[3:35] != CALLER[3:35]


async def test_a_client_that_disconnected_is_not_an_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    async def unanswered(scope: object, receive: object, send: object) -> None:
        pass

    async def nothing(*_: object) -> dict[str, object]:
        return {}

    caplog.set_level(logging.INFO)
    scope = {"type": "http", "path": "/tasks", "method": "BREW", "scheme": "http", "headers": []}
    await Requests(unanswered)(scope, nothing, nothing)  # type: ignore[arg-type]
    (line,) = caplog.records
    assert (line.levelno, line.getMessage()) == (logging.INFO, "other (no route)")
    assert "status" not in vars(line)
