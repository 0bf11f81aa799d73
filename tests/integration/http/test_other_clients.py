"""Clients that ask for HTTP/2 by an upgrade (h2c): a real JDK's `HttpClient`, which does so by default, and curl.

RFC 9110, section 7.8: a server may ignore that, and answers the request as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from taskflux.http.submissions import Limits
from taskflux.local.console import Trouble
from taskflux.local.ports import LOOPBACK
from tests.integration.http.serving import served
from tests.kafka.classpath import java
from tests.unit.http.letters import letter
from tests.unit.http.memory import Fixture

ASKS = Path(__file__).with_name("Asks.java")
CURL = shutil.which("curl")
QUIET = 0.1
"""Seconds without a byte after which a client waits for an answer."""
LONG = json.dumps({"payload": "x" * 100_000})
TASK = json.dumps({"payload": "short"})
BATCH = json.dumps([{"payload": "1"}, {"payload": "2"}])


@pytest.fixture
def java_program() -> str:
    """The Java to run; only `make test-kafka` demands that there is one."""
    try:
        return java()
    except Trouble as trouble:
        if os.environ.get("TASKFLUX_TEST_BROKER") == "kafka":
            raise
        pytest.skip(str(trouble))


@pytest.fixture
async def http() -> AsyncIterator[Fixture]:
    fixture = Fixture(Limits())
    yield fixture
    await fixture.client.aclose()


@dataclass
class Relay:
    """Passes on what a client sends in so many packets: a head and its body in 1 or in 2, or (0) as they come."""

    target: int
    packets: int
    connections: int = 0
    sent: bytearray = field(default_factory=bytearray)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        back, forth = await asyncio.open_connection(LOOPBACK, self.target)
        answers = asyncio.create_task(_copy(back, writer))
        while sent := await self._next(reader):
            self.sent += sent
            head, end, body = sent.partition(b"\r\n\r\n")
            for part in (head + end, body) if self.packets == 2 else (sent,):
                forth.write(part)
                await forth.drain()
                await asyncio.sleep(QUIET / 2 if self.packets == 2 else 0)
        forth.close()
        await answers

    async def _next(self, reader: asyncio.StreamReader) -> bytes:
        """What comes until the client waits; nothing at its end."""
        sent = await reader.read(1 << 20)
        with contextlib.suppress(TimeoutError):
            while self.packets and (more := await asyncio.wait_for(reader.read(1 << 20), QUIET)):
                sent += more
        return sent


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 20):
        writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def relayed(http: Fixture, packets: int) -> AsyncIterator[tuple[str, Relay]]:
    """The address of the application, through a relay."""
    async with served(http.app) as server:
        relay = Relay(server.port, packets)
        listening = await asyncio.start_server(relay, LOOPBACK, 0)
        async with listening:
            yield f"http://{LOOPBACK}:{listening.sockets[0].getsockname()[1]}", relay


async def run(*argv: str | Path) -> list[str]:
    """The lines that a program prints; it has to end with 0."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*map(str, argv), stdout=pipe, stderr=pipe)
    said, complained = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, complained.decode()
    return said.decode().splitlines()


@pytest.mark.timeout(150)
@pytest.mark.parametrize("packets", [0, 1, 2])
async def test_java_s_client_is_answered_however_it_frames_and_sends_its_bodies(
    packets: int, http: Fixture, java_program: str
) -> None:
    discarded, replayed = http.letters.put(letter()), http.letters.put(letter())
    reason = json.dumps({"reason": "a test"})
    asked = [
        *(("POST", "/tasks", framed, body) for framed in ("length", "chunked", "expect") for body in (TASK, LONG)),
        *(("POST", "/tasks/batch", framed, BATCH) for framed in ("length", "chunked", "expect")),
        ("GET", "/livez", "none", ""),
        ("POST", f"/dead-letters/{discarded}/discard", "length", reason),
        ("POST", f"/dead-letters/{replayed}/replay", "chunked", "{}"),
        ("POST", "/tasks", "none", ""),
        ("POST", "/tasks", "chunked", TASK),
    ]
    async with relayed(http, packets) as (address, relay):
        words = [word for each in asked for word in each]
        answers = await run(java_program, "-XX:TieredStopAtLevel=1", ASKS, address, *words)
    assert relay.connections == 1
    assert bytes(relay.sent).lower().count(b"upgrade: h2c\r\n") >= 1
    statuses = [answer[:3] for answer in answers]
    assert statuses == ["202"] * 9 + ["200", "200", "202", "400", "202"], answers
    assert http.letters.rows[discarded]["discard_reason"] == "a test"
    assert [each for each, _ in http.letters.sent] == [replayed]
    texts = ['"short"', json.dumps("x" * 100_000)]
    assert [task.payload for task in http.intake.accepted] == texts * 3 + ['"1"', '"2"'] * 3 + texts[:1]


def _speaks_http2() -> bool:
    if CURL is None:
        return False
    return "HTTP2" in subprocess.run([CURL, "--version"], capture_output=True, text=True, check=False).stdout


@pytest.mark.skipif(not _speaks_http2(), reason="there is no curl here that speaks HTTP/2")
@pytest.mark.parametrize("packets", [0, 1, 2])
@pytest.mark.parametrize("framed", [(), ("-H", "Transfer-Encoding: chunked")], ids=["length", "chunked"])
@pytest.mark.parametrize("expected", ["Expect:", "Expect: 100-continue"])
async def test_curl_that_asks_for_http_2_is_answered(
    framed: tuple[str, ...], packets: int, expected: str, http: Fixture
) -> None:
    async with relayed(http, packets) as (address, relay):
        one = ("--http2", "-sS", "-w", " %{http_version} %{http_code}\n", "-H", "Content-Type: application/json")
        asks = (*one, *framed, "-H", expected, "--data-binary")
        second = ("--next", *asks, BATCH, f"{address}/tasks/batch", "--next", *one, f"{address}/livez")
        answers = await run(CURL or "", *asks, TASK, f"{address}/tasks", *second)
    assert relay.connections == 1
    assert bytes(relay.sent).lower().count(b"upgrade: h2c\r\n") >= 1
    assert [line[-8:] for line in answers if line[-8:-3] == " 1.1 "] == [" 1.1 202", " 1.1 202", " 1.1 200"], answers
    assert [task.payload for task in http.intake.accepted] == ['"short"', '"1"', '"2"']
