"""The programs of docs/clients.md, each extracted and run as it stands there, against a whole TaskFlux.

Between a program and ingest stands a front that answers badly first: 503, no answer at all to a request that was
accepted, 429.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from taskflux.local.ports import LOOPBACK
from taskflux.local.servers import ValkeyServer
from taskflux.store.settings import RedisSettings
from taskflux.stream.settings import KafkaSettings
from taskflux.worker.loading import built_in_handlers
from tests.conftest import NewDatabase
from tests.integration.system.stack import Stack, settings_for
from tests.keys import KEY
from tests.programs import program

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"
CHECKED = re.compile(r"^<!-- check: (\w+) -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {name: text for name, _, text in CHECKED.findall(PAGE.read_text(encoding="utf-8"))}
WAIT = 2
"""Seconds of the first Retry-After: a program that ignores it is back after one."""

pytestmark = pytest.mark.timeout(300)


_PYTHON: tuple[str, Sequence[str], dict[str, str]] = ("client.py", (sys.executable,), {})
RUN: dict[str, tuple[str, Sequence[str], dict[str, str]]] = {
    "curl": ("client.sh", ("bash", "-euo", "pipefail"), {"curl": "curl", "jq": "jq"}),
    "httpx": _PYTHON,
    "requests": _PYTHON,
    "urllib": _PYTHON,
    "node": ("client.mjs", ("node",), {"node": "nodejs"}),
    "java": ("Client.java", ("java",), {"java": "openjdk-17-jdk-headless"}),
    "go": ("client.go", ("go", "run"), {"go": "golang-go"}),
}
"""Name → the file that a reader saves it to, what they run it by, and the commands that takes with Debian's package."""


@dataclass
class Front:
    """Stands before ingest: it answers the first connections badly, and passes on the bytes of all others."""

    port: int
    begun: list[float] = field(default_factory=list)
    """When each of the first requests came, by the loop's clock."""
    asked: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Key and body of each of them."""
    lost: bytes = b""
    """The answer that was not passed on."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head, body = await _message(reader)
        except asyncio.IncompleteReadError:  # opened in advance, as Go does, and not needed
            writer.close()
            return
        if len(self.asked) < 4:
            key = re.search(rb"(?i)\r\nidempotency-key: *(\S+)", head)
            assert key, head
            self.begun.append(asyncio.get_running_loop().time())
            self.asked.append((key[1], body))
            await self._first(head + body, reader, writer)
        else:
            await self._pass_on(head + body, reader, writer)

    async def _first(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match len(self.asked):
            case 1:
                await _refuse(writer, f"503 Service Unavailable\r\nRetry-After: {WAIT}")
            case 2:
                back, forth = await asyncio.open_connection(LOOPBACK, self.port)
                forth.write(request)
                _, self.lost = await _message(back)
                forth.close()
                writer.close()
            case 3:
                await _refuse(writer, "429 Too Many Requests\r\nRetry-After: 1")
            case _:
                await self._pass_on(request, reader, writer)

    async def _pass_on(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(LOOPBACK, self.port)
        forth.write(request)
        await asyncio.gather(_copy(reader, forth), _copy(back, writer))


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """A request's or an answer's head, and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head, await reader.readexactly(int(length[1]) if length else 0)


async def _refuse(writer: asyncio.StreamWriter, status: str) -> None:
    writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    await writer.drain()
    writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # one side has ended, so the other one may
    finally:
        writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ingest(
    new_database: NewDatabase, kafka_settings: KafkaSettings, valkey: ValkeyServer, servers_dir: Path
) -> AsyncIterator[int]:
    """The port of a TaskFlux that runs simulated tasks."""
    kafka = kafka_settings.model_copy(update={"topic_prefix": "clients-"})
    redis = RedisSettings.model_validate({"url": valkey.url})
    directory = servers_dir / "clients"
    directory.mkdir()
    settings = settings_for(await new_database(), kafka, redis)
    stack = await Stack.create(settings, built_in_handlers(), directory)
    await asyncio.gather(*map(stack.start, ("ingest", "relay", "process-simulated")))
    yield settings.http.port
    await stack.close()


@dataclass
class Run:
    """What a program printed, and what its front has seen."""

    front: Front
    status: int | None
    printed: list[str]
    complained: str


async def run(name: str, ingest: int, folder: Path) -> Run:
    """Run a program of the page as it stands there."""
    file, argv, _ = RUN[name]
    (folder / file).write_text(PROGRAMS[name], encoding="utf-8")
    front = Front(ingest)
    async with await asyncio.start_server(front, LOOPBACK, 0) as listening:
        address = f"http://localhost:{listening.sockets[0].getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            *(*argv, file),
            cwd=folder,
            env={**os.environ, "TASKFLUX_API__URL": address, "TASKFLUX_API__KEY": KEY},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await process.communicate()
    return Run(front, process.returncode, said.decode().splitlines(), complained.decode())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def runs(ingest: int, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, asyncio.Task[Run]]]:
    """All programs whose commands are there, at once: most of their time is waiting."""
    yield {
        name: asyncio.create_task(run(name, ingest, tmp_path_factory.mktemp(name)))
        for name in PROGRAMS
        if all(map(shutil.which, RUN[name][2]))
    }


def test_every_program_of_the_page_is_run_by_a_test() -> None:
    fences = re.findall(r"^```(\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(PROGRAMS) == len([language for language in fences if language != "text"])
    assert PROGRAMS.keys() == RUN.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
async def test_a_documented_client_repeats_a_submission_follows_it_and_names_a_wrong_field(
    name: str, runs: dict[str, asyncio.Task[Run]]
) -> None:
    for command, package in RUN[name][2].items():
        program(command, package=package)
    ran = await runs[name]
    assert ran.status == 0, ran.complained
    accepted = json.loads(ran.front.lost)["taskId"]
    assert ran.printed == [f"{accepted} succeeded", "422 payload.to: is required"]
    assert len(ran.front.asked) == 4
    assert len(set(ran.front.asked)) == 1, "a repeat is the same request with the same key"
    assert ran.front.begun[1] - ran.front.begun[0] >= WAIT - 0.05, "Retry-After was not waited for"
