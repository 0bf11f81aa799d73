"""Listening, draining, and clients that behave oddly, over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from taskflux.http.connections import Demands
from taskflux.http.server import listen, serve
from taskflux.http.submissions import Limits
from taskflux.worker.settings import WrongSettings
from tests.integration.http.serving import served
from tests.unit.http.memory import Fixture


class Slow:
    """An application whose answers wait until `go`; `entered` is set once a request has come in."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.cut_off = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cut_off.set()
            raise
        await Response(b"{}")(scope, receive, send)


async def ended(task: asyncio.Task[Any]) -> None:
    await asyncio.wait_for(asyncio.shield(task), 10)


def test_a_port_in_use_is_reported_in_a_sentence_that_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WrongSettings, match=rf"port {port} on 127.0.0.1 is in use: set TASKFLUX_HTTP__PORT"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "setting"),
    [("127.0.0.1", 70_000, "TASKFLUX_HTTP__PORT"), ("203.0.113.1", 0, "TASKFLUX_HTTP__HOST")],
)
def test_an_impossible_address_is_reported_too(host: str, port: int, setting: str) -> None:
    with pytest.raises(WrongSettings, match=setting):
        listen(host, port)


async def test_a_drain_ends_what_is_in_flight_and_accepts_nothing_new() -> None:
    app = Slow()
    async with served(app) as server:
        asking = asyncio.create_task(server.client.get("/"))
        await app.entered.wait()
        server.draining.set()
        while True:  # until it has stopped listening
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            except OSError:
                break
            writer.close()
            await asyncio.sleep(0.01)
        assert not server.serving.done()
        app.go.set()
        assert (await asking).status_code == 200
        await ended(server.serving)


async def test_what_a_load_balancer_sends_late_is_still_accepted() -> None:
    app = Slow()
    app.go.set()
    async with served(app, linger=3600) as server:
        server.draining.set()
        for _ in range(3):
            async with httpx.AsyncClient() as client:  # a new connection each
                assert (await client.get(f"http://127.0.0.1:{server.port}/")).status_code == 200
        server.hurry.set()
        await ended(server.serving)


async def test_a_drain_lingers_no_longer_than_it_was_told() -> None:
    async with served(Slow(), linger=0.05) as server:
        server.draining.set()
        await ended(server.serving)


async def test_an_idle_connection_does_not_hold_up_a_drain() -> None:
    app = Slow()
    app.go.set()
    async with served(app) as server:
        assert (await server.client.get("/")).status_code == 200
        server.draining.set()
        await ended(server.serving)


async def test_what_outlives_the_grace_is_cut_off() -> None:
    app = Slow()
    async with served(app, grace=0.1) as server:
        asking = asyncio.create_task(server.client.get("/"))
        await app.entered.wait()
        server.draining.set()
        await ended(server.serving)
        await asyncio.wait_for(app.cut_off.wait(), 1)
        await asyncio.gather(asking, return_exceptions=True)


async def test_a_server_that_is_cancelled_stops_listening() -> None:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    app = Slow()
    serving = asyncio.create_task(
        serve(app, listen("127.0.0.1", 0), draining=asyncio.Event(), grace=1, listening=port.set_result)
    )
    number = await port
    async with httpx.AsyncClient() as client:
        app.go.set()
        await client.get(f"http://127.0.0.1:{number}/")
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    with socket.create_server(("127.0.0.1", number)):
        pass


async def test_a_server_that_no_longer_watches_its_connections_ends_with_the_error() -> None:
    nonsense = Demands(least_rate=0, stall=0.1)  # the first look at a body divides by it
    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(serve(Slow(), listener, draining=asyncio.Event(), grace=5.0, demands=nonsense))
    _, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"POST /tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
    with pytest.raises(ZeroDivisionError):
        await ended(serving)
    writer.close()


async def test_an_error_is_logged_without_what_it_quotes(caplog: pytest.LogCaptureFixture) -> None:
    http = Fixture()
    http.intake.trouble = KeyError("ada@example.org")
    with caplog.at_level(logging.ERROR):
        async with served(http.app) as server:
            response = await server.client.post("/tasks", json={"payload": "x"})
            assert response.status_code == 500
    assert "KeyError" in caplog.text
    assert "ada@example.org" not in caplog.text


async def test_a_body_above_the_limit_is_refused_before_it_is_sent() -> None:
    """As `curl` does with a large body: it asks first."""
    async with served(Fixture().app) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /tasks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 99999999\r\nexpect: 100-continue\r\n\r\n"
        )
        line = await asyncio.wait_for(reader.readline(), 5)
        assert line.startswith(b"HTTP/1.1 413 ")
        writer.close()


async def test_a_client_that_hangs_up_in_the_middle_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    http = Fixture()
    async with served(http.app) as server:
        for path in ("/tasks", "/tasks/batch"):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
            writer.write(head.encode() + b'[{"payload": "x"}, {"pay')
            await writer.drain()
            if path == "/tasks/batch":
                await asyncio.wait_for(http.intake.arrived.wait(), 10)
            writer.close()
            await writer.wait_closed()
        # The next request is answered after the ones before were dealt with.
        assert (await server.client.get("/livez")).status_code == 200
        server.draining.set()
        await ended(server.serving)
    assert [task.payload for task in http.intake.accepted] == ['"x"']
    assert caplog.text == ""


async def test_a_client_that_reads_only_after_it_has_sent_everything_gets_every_answer() -> None:
    http = Fixture(Limits())
    async with served(http.app) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        line = b'{"payload": "x"}\n'
        count = 40_000  # their answers are some 6 MB: more than the sockets between us hold
        writer.write(
            b"POST /tasks/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % (len(line) * count)
        )
        for _ in range(count // 1000):
            writer.write(line * 1000)
            await asyncio.wait_for(writer.drain(), 30)
        answered = await asyncio.wait_for(reader.read(-1), 30)
        writer.close()
    assert answered.count(b'"status":202') == count


async def test_a_batch_is_accepted_while_it_arrives() -> None:
    http = Fixture()

    async def parts() -> Any:
        yield b'[{"payload": "first"}'
        yield b", "
        await asyncio.wait_for(http.intake.arrived.wait(), 10)
        yield b'{"payload": "second"}]'

    async with served(http.app) as server:
        headers = {"content-type": "application/json"}
        response = await server.client.post("/tasks/batch", content=parts(), headers=headers)
        assert [result["status"] for result in json.loads(response.text)] == [202, 202]
