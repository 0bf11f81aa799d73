"""Clients that send too much, too slowly or nothing, and that do not read, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from taskflux.http.connections import MOST_PIPELINED, Connection, Connections, Demands
from taskflux.telemetry import metrics
from tests.integration.http.serving import Served, demand, served
from tests.integration.system.stack import eventually
from tests.unit.http.memory import Fixture

QUICK = Demands(head=0.4, idle=0.4, stall=0.4, linger=0.4, request=30.0)
HEAD = b"POST /tasks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
TASK = b'{"payload": "x"}'
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(TASK) + TASK


@dataclass(frozen=True, slots=True)
class Peer:
    """The client's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, Any]:
        """The status and the document of the next answer."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await asyncio.wait_for(self.reader.readexactly(length), 10)
        return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else body

    async def ended(self) -> bytes:
        """What comes until the server ends the connection."""
        try:
            return await asyncio.wait_for(self.reader.read(-1), 10)
        except ConnectionResetError:
            return b""


Connect = Callable[..., Awaitable[Peer]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects to a server and sends something; all is closed in the end."""
    peers = []

    async def connect(server: Served, sent: bytes = b"") -> Peer:
        peers.append(Peer(*await asyncio.open_connection("127.0.0.1", server.port)))
        peers[-1].writer.write(sent)
        return peers[-1]

    yield connect
    for peer in peers:
        peer.writer.close()
        await asyncio.gather(peer.writer.wait_closed(), return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async def met() -> bool:
        return condition()

    await eventually(met, "what is waited for")


@pytest.fixture
async def http() -> AsyncIterator[Fixture]:
    fixture = Fixture()
    yield fixture
    await fixture.client.aclose()


@pytest.mark.parametrize(
    ("head", "slug"),
    [
        (b"GET /tasks HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 40_000, "head-too-large"),
        (b"GET /tasks HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 200, "head-too-large"),
        (b"GET /tasks HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(200)), "head-too-large"),
        (b"GET /tasks?" + b"y" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", "target-too-long"),
        (b"GET /" + b"y" * 50_000, "target-too-long"),
        (b"GET / HTTP/1.1\r\n" + b"x" * 50_000, "head-too-large"),
        (b"\r\n" * 20_000, "head-too-large"),
        (b"NONSENSE\r\n\r\n", "bad-request"),
        (b"GET / HTTP/1.1\r\n\r\n", "bad-request"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", "bad-request"),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", "bad-request"),
        (b"GET /\r\n\r\n", "bad-request"),
        (b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n", "bad-request"),
        (b"CONNECT * HTTP/1.1\r\nhost: x\r\n\r\n", "bad-request"),
        (HEAD + b"content-length: 16\r\ncontent-length: 16\r\n\r\n", "bad-request"),
        (HEAD + b"content-length: 16\r\ntransfer-encoding: chunked\r\n\r\n", "bad-request"),
        (HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n", "bad-request"),
        (HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", "bad-request"),
        (HEAD.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n", "bad-request"),
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", "bad-request"),
    ],
)
async def test_a_head_that_is_too_large_or_invalid_is_refused_with_a_problem(
    head: bytes, slug: str, http: Fixture, connect: Connect
) -> None:
    async with served(http.app, demands=QUICK) as server:
        peer = await connect(server, head)
        status, problem = await peer.answer()
        assert (status, problem["type"]) == (problem["status"], f"/problems/{slug}")
        assert await peer.ended() == b""


async def test_a_head_of_48_mib_does_not_hold_up_others(http: Fixture, connect: Connect) -> None:
    async with served(http.app) as server:
        peer = await connect(server, b"GET / HTTP/1.1\r\nx: " + b"y" * (48 << 20))
        assert (await peer.answer())[0] == 431
        assert (await asyncio.wait_for(server.client.get("/livez"), 5)).status_code == 200


async def test_a_large_head_within_the_bounds_is_accepted(http: Fixture, connect: Connect) -> None:
    async with served(http.app) as server:
        fields = b"".join(b"x-%d: %s\r\n" % (n, b"y" * 300) for n in range(90))
        peer = await connect(server, b"GET /livez?" + b"y" * 2000 + b" HTTP/1.1\r\nhost: x\r\n" + fields + b"\r\n")
        assert await peer.answer() == (200, b"ok\n")


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (b"GET", b"HTTP/1.1 408 "),
        (b"\r\n", b"HTTP/1.1 408 "),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", b"HTTP/1.1 408 "),
        (HEAD + b"content-length: 100\r\n\r\n{", b"HTTP/1.1 408 "),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"HTTP/1.1 408 "),
        (WHOLE, b"HTTP/1.1 202 "),
        (WHOLE + b"GET ", b"HTTP/1.1 202 "),
    ],
)
async def test_a_client_that_falls_silent_is_cut(sent: bytes, answered: bytes, http: Fixture, connect: Connect) -> None:
    async with served(http.app, demands=QUICK) as server:
        peer = await connect(server, sent)
        assert (await peer.ended())[: len(answered)] == answered


@pytest.mark.parametrize(
    ("begin", "drop", "status"),
    [
        (b"GET /", b"x", 408),
        (b"GET / HTTP/1.1\r\n", b"x", 408),
        (b"", b"\n", 408),
        (HEAD + b"content-length: 1000\r\n\r\n", b" ", 408),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n", 408),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1;", b"x", 408),
        (WHOLE, b"\n", 202),
    ],
)
async def test_a_client_that_drips_is_cut(
    begin: bytes, drop: bytes, status: int, http: Fixture, connect: Connect
) -> None:
    async with served(http.app, demands=QUICK) as server:
        peer = await connect(server, begin)
        ended = asyncio.create_task(peer.ended())
        while not ended.done():
            if not peer.writer.is_closing():
                peer.writer.write(drop)
            await asyncio.sleep(0.05)
        assert ended.result().startswith(b"HTTP/1.1 %d " % status)
        assert ended.result().lower().count(b"retry-after: 1\r\n") == 1


async def test_a_body_that_comes_fast_enough_may_take_longer_than_it_may_stall(http: Fixture, connect: Connect) -> None:
    async with served(http.app, demands=Demands(stall=0.2, least_rate=100)) as server:
        peer = await connect(server, HEAD + b"content-length: 616\r\n\r\n")
        for part in (b" " * 200, b" " * 200, b" " * 200):
            peer.writer.write(part)
            await asyncio.sleep(0.4)
        peer.writer.write(TASK)
        assert (await peer.answer())[0] == 202


async def test_a_client_that_reads_nothing_is_cut(connect: Connect) -> None:
    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"x" * (64 << 20))(scope, receive, send)

    async with served(large, demands=QUICK) as server:
        cut = metrics.HTTP_CUT.labels("slow-reader")
        before = cut.value
        peer = await connect(server, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: cut.value == before + 1)
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await peer.ended()) < 64 << 20


async def test_a_client_that_reads_slowly_gets_everything(connect: Connect) -> None:
    size = 24 << 20

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"x" * size)(scope, receive, send)

    async with served(large, demands=Demands(idle=0.4, stall=5.0)) as server:
        peer = await connect(server, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        got = 0
        while part := await asyncio.wait_for(peer.reader.read(1 << 20), 10):
            got += len(part)
            await asyncio.sleep(0.01)
        assert got > size


async def test_of_too_many_connections_the_oldest_that_waits_makes_room(http: Fixture, connect: Connect) -> None:
    async with served(http.app, demands=Demands(connections=10)) as server:
        silent = [await connect(server) for _ in range(9)]
        sending = await connect(server, HEAD + b"content-length: 100\r\n\r\n{")
        for _ in range(30):  # a client that connects now is still served
            peer = await connect(server, WHOLE)
            assert (await peer.answer())[0] == 202
        for each in silent:
            assert await each.ended() == b""
        sending.writer.write(b'"payload": "y"}' + b" " * 84)
        assert (await sending.answer())[0] == 202


async def test_when_all_are_sending_the_oldest_of_them_is_answered_and_makes_room(
    http: Fixture, connect: Connect
) -> None:
    async with served(http.app, demands=Demands(connections=10)) as server:
        head = HEAD.replace(b"/tasks", b"/tasks/batch") + b"content-length: 100\r\n\r\n"
        sending = [await connect(server, head + b'[{"payload": "x"},') for _ in range(10)]
        await until(lambda: len(http.intake.accepted) == 10)
        peer = await connect(server, WHOLE)
        assert (await peer.answer())[0] == 202
        told = await sending[0].ended()
        assert told.count(b'"status":202') == 1
        assert told.count(b"/problems/too-many-connections") == 1


async def test_when_all_are_being_answered_a_further_one_is_refused(http: Fixture, connect: Connect) -> None:
    http.intake.gate.clear()
    async with served(http.app, demands=Demands(connections=10)) as server:
        asking = [await connect(server, WHOLE) for _ in range(10)]
        await until(lambda: http.intake.in_flight == 10)
        for _ in range(3):
            status, problem = await (await connect(server)).answer()
            assert (status, problem["type"]) == (503, "/problems/too-many-connections")
        http.intake.gate.set()
        assert [(await peer.answer())[0] for peer in asking] == [202] * 10


async def test_requests_before_an_invalid_one_are_answered_before_it(http: Fixture, connect: Connect) -> None:
    async with served(http.app) as server:
        peer = await connect(server, WHOLE * 3 + b"NONSENSE\r\n\r\n")
        assert [(await peer.answer())[0] for _ in range(4)] == [202, 202, 202, 400]
        assert await peer.ended() == b""


async def test_only_so_many_requests_wait_for_their_answers(http: Fixture, connect: Connect) -> None:
    async with served(http.app) as server:
        peer = await connect(server, WHOLE * (MOST_PIPELINED + 10))
        assert [(await peer.answer())[0] for _ in range(MOST_PIPELINED)] == [202] * MOST_PIPELINED
        assert (await peer.answer())[0] == 400
        assert await peer.ended() == b""


async def test_a_body_that_is_not_framed_as_http_demands_is_a_400_and_what_was_accepted_is_answered(
    http: Fixture, connect: Connect
) -> None:
    async with served(http.app) as server:
        chunked = b"transfer-encoding: chunked\r\n\r\n"
        single = await connect(server, HEAD + chunked + b'5\r\n{"pay\r\nnonsense\r\n')
        status, problem = await single.answer()
        assert (status, problem["type"]) == (400, "/problems/bad-request")
        batch = await connect(server, HEAD.replace(b"/tasks", b"/tasks/batch") + chunked)
        batch.writer.write(b'12\r\n[{"payload": "x"},\r\n')
        await until(lambda: bool(http.intake.accepted))
        batch.writer.write(b"nonsense\r\n")
        told = await batch.ended()
        assert told.count(b'"status":202') == 1
        assert told.count(b"/problems/bad-request") == 1


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    "framed",
    [
        b"content-length: %d\r\n\r\n" % len(TASK) + TASK,
        b"transfer-encoding: chunked\r\n\r\n10\r\n" + TASK + b"\r\n0\r\n\r\n",
    ],
)
async def test_a_request_that_asks_for_another_protocol_is_served_without_it(
    framed: bytes, size: int, http: Fixture, connect: Connect
) -> None:
    asks = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n"
    async with served(http.app) as server:
        peer = await connect(server)
        sent = HEAD + asks + framed
        sent += b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n" + sent
        for at in range(0, len(sent), size):
            peer.writer.write(sent[at : at + size])
            await asyncio.sleep(0)
        assert [(await peer.answer())[0] for _ in range(3)] == [202, 200, 202]
        assert [task.payload for task in http.intake.accepted] == ['"x"', '"x"']


async def test_a_request_of_http_1_0_that_asks_for_another_protocol_stays_one(http: Fixture, connect: Connect) -> None:
    async with served(http.app) as server:
        peer = await connect(server, b"GET /livez HTTP/1.0\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        assert (await peer.answer())[0] == 200
        assert await peer.ended() == b""


async def test_connect_begins_no_request(connect: Connect) -> None:
    begun: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["method"])
        await Response()(scope, receive, send)

    async with served(app) as server:
        peer = await connect(server, b"CONNECT * HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await peer.answer())[1]["detail"] == "CONNECT is not supported: this server is not a proxy"
        assert await peer.ended() == b""
    assert begun == []


async def test_a_client_that_has_reset_its_connection_can_be_refused() -> None:
    made: list[Connection] = []
    loop = asyncio.get_running_loop()
    connections = Connections(Demands())

    def protocol() -> Connection:
        made.append(connections.protocol()(uvicorn.Config(None), ServerState(), {}))  # type: ignore[arg-type]
        return made[0]

    listening = await loop.create_server(protocol, "127.0.0.1", 0)
    with socket.create_connection(listening.sockets[0].getsockname()) as client:
        await until(lambda: bool(made) and hasattr(made[0], "place"))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made[0].refuse(None)  # before the loop can notice
    listening.close()
    await until(lambda: made[0].transport.is_closing())


async def test_trailers_are_bounded_and_no_headers(http: Fixture, connect: Connect) -> None:
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n10\r\n" + TASK + b"\r\n0\r\n"
    async with served(http.app) as server:
        peer = await connect(server, chunked + b"idempotency-key: k\r\n\r\n")
        assert (await peer.answer())[0] == 202
        assert http.intake.accepted[0].idempotency is None
        peer.writer.write(chunked + b"x: y\r\n" * 200 + b"\r\n")
        assert (await peer.answer())[0] == 431
        assert await peer.ended() == b""


async def test_a_trailer_without_an_end_is_cut_off(http: Fixture, connect: Connect) -> None:
    async with served(http.app) as server:
        peer = await connect(server, HEAD + b"transfer-encoding: chunked\r\n\r\n10\r\n" + TASK + b"\r\n0\r\nx: ")
        for _ in range(4):  # each is within the bounds
            await asyncio.sleep(0.05)
            peer.writer.write(b"y" * 10_000)
        status, problem = await peer.answer()
        assert (status, problem["type"]) == (431, "/problems/head-too-large")
        assert await peer.ended() == b""


async def test_an_idle_connection_is_cut_by_our_rule_and_counted(http: Fixture, connect: Connect) -> None:
    async with served(http.app, demands=Demands(idle=1.0)) as server:
        cut = metrics.HTTP_CUT.labels("idle")
        before = cut.value
        peer = await connect(server, WHOLE)
        assert (await peer.answer())[0] == 202
        assert await peer.ended() == b""
        assert cut.value == before + 1


async def test_a_refused_body_may_continue_for_a_while_and_the_connection_serves_again(
    http: Fixture, connect: Connect
) -> None:
    demands = Demands(linger=3600.0)
    async with served(http.app, demands=demands) as server:
        large = HEAD + b"content-length: 20000\r\n\r\n"
        peer = await connect(server, large)
        assert (await peer.answer())[0] == 413
        peer.writer.write(b"x" * 20_000 + WHOLE)
        assert (await peer.answer())[0] == 202
        peer.writer.write(large)
        assert (await peer.answer())[0] == 413
        demand(demands, linger=0.0)
        assert await peer.ended() == b""
