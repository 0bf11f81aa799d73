"""HTTP servers and parsers under the same application: `python -m benchmarks.http_servers [--rounds 9]`.

Prints the tables of docs/decisions/0002-http-server.md: what one submit costs in each server, and what each does with
clients that ask for HTTP/2, or send too much, too slowly or nothing. Every server is a process of its own. granian,
hypercorn and zttp are not dependencies: without them, the tables lack their rows. Nothing is stored: a task that is
accepted is dropped, so that what differs is the server alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import uvicorn
import uvloop
from starlette.types import ASGIApp

from benchmarks.lab import ROOT, listening
from benchmarks.proc import cpu_seconds
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Contestant, take_turns
from taskflux.http.access import Access
from taskflux.http.app import create_app
from taskflux.http.dead_letters import DeadLetterRoutes
from taskflux.http.requests import Requests
from taskflux.http.server import listen, serve
from taskflux.http.submissions import Limits, Submissions
from taskflux.http.task_types import TypeRegistry
from taskflux.http.tasks import TaskRoutes
from taskflux.local.ports import LOOPBACK, free_port
from taskflux.store.tasks import TaskTypes
from taskflux.tasks.model import Accepted, KeyReused, Submission, TaskType
from taskflux.worker.intake import Intake

CONNECTIONS: Final = 32
TASK: Final = {"taskType": "noop", "payload": {"to": "someone@example.org", "subject": "Hello", "number": 12345}}
BODY: Final = json.dumps(TASK).encode()
HEAD_SECONDS, HEAD_BYTES, IDLE_SECONDS, MOST, BACKLOG = 10, 32 * 1024, 75, 1000, 2048
PATIENCE: Final = 25.0
"""Seconds after which a client that should be cut never will be."""


# The servers ----------------------------------------------------------------------------------------------------------


class _Dropping(Intake):
    def __init__(self) -> None:
        """Nothing is published."""

    def accept(self, submission: Submission) -> asyncio.Future[Accepted | KeyReused]:
        accepted: asyncio.Future[Accepted | KeyReused] = asyncio.get_running_loop().create_future()
        accepted.set_result(Accepted(submission.id, submission.type, datetime.now(UTC)))
        return accepted


class _Types(TaskTypes):
    async def all(self) -> Mapping[str, TaskType]:
        return {"noop": TaskType("noop", "{}", 8, "resend", None)}


async def application() -> ASGIApp:
    """The API of ingest over an intake that drops what it accepts."""
    nobody: Any = None
    registry = TypeRegistry(_Types(nobody))
    await registry.refresh()
    submissions = Submissions(_Dropping(), registry, Limits())
    letters = DeadLetterRoutes(nobody, submissions)
    return create_app(
        submissions,
        TaskRoutes(nobody, None, nobody),
        letters,
        None,
        started=lambda: True,
        access=Access("off", None),
    )


async def ours(app: ASGIApp, port: int) -> None:
    await serve(app, listen(LOOPBACK, port), draining=asyncio.Event(), grace=1.0)


async def uvicorn_with(parser: str, app: ASGIApp, port: int) -> None:
    options: dict[str, Any] = {"h11_max_incomplete_event_size": HEAD_BYTES, "timeout_keep_alive": IDLE_SECONDS}
    options["backlog"] = BACKLOG
    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
    served: dict[str, Any] = {
        "host": LOOPBACK,
        "port": port,
        "loop": "none",
        "http": parser,
        "ws": "none",
        "lifespan": "off",
    }
    await uvicorn.Server(uvicorn.Config(Requests(app), **served, **options, **quiet)).serve()


async def granian(app: ASGIApp, port: int) -> None:
    """Inside our process and event loop, as TaskFlux's processes need it; granian calls this mode experimental."""
    embedded = importlib.import_module("granian.server.embed")
    settings = importlib.import_module("granian.http").HTTP1Settings(
        header_read_timeout=HEAD_SECONDS * 1000, max_buffer_size=HEAD_BYTES
    )
    options: dict[str, Any] = {
        "interface": "asginl",
        "websockets": False,
        "log_enabled": False,
        "http1_settings": settings,
    }
    options |= {"backlog": BACKLOG, "backpressure": MOST}
    await embedded.Server(Requests(app), address=LOOPBACK, port=port, **options).serve()


async def hypercorn(app: ASGIApp, port: int) -> None:
    config = importlib.import_module("hypercorn.config").Config()
    config.bind = [f"{LOOPBACK}:{port}"]
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.h11_max_incomplete_size, config.keep_alive_timeout = HEAD_BYTES, float(IDLE_SECONDS)
    config.backlog = BACKLOG
    config.read_timeout, config.keep_alive_max_requests = HEAD_SECONDS, sys.maxsize
    await importlib.import_module("hypercorn.asyncio").serve(Requests(app), config)


OURS: Final = "TaskFlux on httptools"
SERVERS: Final[Mapping[str, Callable[[ASGIApp, int], Coroutine[Any, Any, None]]]] = {
    OURS: ours,
    "uvicorn, httptools": partial(uvicorn_with, "httptools"),
    "uvicorn, h11": partial(uvicorn_with, "h11"),
    "uvicorn, zttp": partial(uvicorn_with, "zttp"),
    "granian": granian,
    "hypercorn, h11": hypercorn,
}


async def serve_one(name: str, port: int) -> None:
    """Serve until the process is ended."""
    await SERVERS[name](await application(), port)


@asynccontextmanager
async def running() -> AsyncIterator[dict[str, tuple[int, int]]]:
    """Every server that is installed, by name: its process and its port."""
    started: dict[str, tuple[int, int]] = {}
    async with AsyncExitStack() as stack:
        for name in SERVERS:
            package = "zttp" if "zttp" in name else name.split(",")[0]
            if name != OURS and importlib.util.find_spec(package) is None:
                print(f"{package} is not installed: its rows are left out", file=sys.stderr)
                continue
            port = free_port()
            argv = [sys.executable, "-m", "benchmarks.http_servers", "--serve", name, "--port", str(port)]
            quiet = asyncio.subprocess.DEVNULL  # what a server says of the clients that misbehave
            child = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stdout=quiet, stderr=quiet)
            stack.push_async_callback(child.wait)
            stack.callback(child.kill)
            await listening(port)
            started[name] = child.pid, port
        yield started


# What a submit costs --------------------------------------------------------------------------------------------------


async def costs(servers: Mapping[str, tuple[int, int]], rounds: int, seconds: float) -> Table:
    """Submits over kept connections, the servers taking turns."""
    for _, port in servers.values():
        await _load(port, 0.5)
    contestants: Mapping[str, Contestant] = {
        name: partial(_round, pid, port, seconds) for name, (pid, port) in servers.items()
    }
    columns = [Column("CPU µs/submit"), Column("submits/s"), Column("p50 ms", 1), Column("p99 ms", 1)]
    samples = await take_turns(contestants, rounds)
    return Table("http-servers", f"one submit, {CONNECTIONS} connections, one process", columns, OURS, samples)


async def _round(pid: int, port: int, seconds: float) -> Sample:
    before = cpu_seconds(pid)
    found = await _load(port, seconds)
    cpu = (cpu_seconds(pid) - before) / found["answered"] * 1e6
    speed = found["answered"] / found["seconds"]
    return {"CPU µs/submit": cpu, "submits/s": speed, "p50 ms": found["p50"], "p99 ms": found["p99"]}


async def _load(port: int, seconds: float) -> dict[str, float]:
    argv = ("-m", "benchmarks.load", str(port), "/tasks", "application/json", str(CONNECTIONS), str(seconds))
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, *argv, cwd=ROOT, stdin=pipe, stdout=pipe)
    output, _ = await child.communicate(BODY)
    found: dict[str, float] = json.loads(output)
    return found


# What the servers do with clients -------------------------------------------------------------------------------------

POST: Final = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET: Final = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
WISH: Final = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
LENGTH: Final = b"Content-Length: %d\r\n\r\n" % len(BODY)
FRAMED: Final = (
    (POST + WISH + LENGTH, BODY),
    (POST + WISH + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
)
AMBIGUOUS: Final = (
    POST + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    GET + b"Host: y\r\n\r\n",
    b"GET /livez HTTP/1.1\r\n\r\n",
)


async def wishes(port: int) -> str:
    """Bodies after a request for HTTP/2: framed in two ways, in one packet and in two, twice on a connection."""
    taken = 0
    for head, body in FRAMED:
        for packets in ((head + body,), (head, body)):
            async with _connected(port) as (reader, writer):
                for _ in range(2):
                    for packet in packets:
                        writer.write(packet)
                        await asyncio.sleep(0.1)
                    taken += await _status(reader) == "202"
    return f"{taken} of 8 taken"


async def large_heads(port: int) -> str:
    """A header of 1 MiB, and 1,000 headers."""
    told = []
    for head in (GET + b"x: " + b"y" * (1 << 20), GET + b"".join(b"x%d: y\r\n" % n for n in range(1000))):
        async with _connected(port) as (reader, writer):
            writer.write(head + b"\r\n\r\n")
            told.append(await _status(reader))
    return ", ".join(told)


async def ambiguous_heads(port: int) -> str:
    """Heads in which a proxy may see another request (RFC 9112, 3.2 and 6.1)."""
    refused = 0
    for head in AMBIGUOUS:
        async with _connected(port) as (reader, writer):
            writer.write(head)
            refused += await _status(reader) in ("400", "501", "closed")
    return f"{refused} of {len(AMBIGUOUS)} refused"


async def slow(sent: bytes, drop: bytes, port: int) -> str:
    """A client that sends this, and then a drop at a time."""
    began = time.monotonic()
    async with _connected(port) as (reader, writer):
        writer.write(sent)
        reading = asyncio.create_task(_status(reader))
        while not reading.done() and time.monotonic() < began + PATIENCE:
            if drop and not writer.is_closing():
                writer.write(drop)
            await asyncio.wait((reading,), timeout=0.5)
        if not reading.done():
            reading.cancel()
            return "kept"
        return f"{reading.result()} after {time.monotonic() - began:.0f} s"


async def unread(port: int) -> str:
    """A client that reads none of its answers."""
    asked = 64
    async with _connected(port) as (reader, writer):
        transport: Any = writer.transport
        transport.pause_reading()
        writer.write((b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n") * asked)
        await asyncio.sleep(PATIENCE)
        transport.resume_reading()
        with contextlib.suppress(ConnectionError, TimeoutError):
            data = b""
            while part := await asyncio.wait_for(reader.read(1 << 20), 2.0):
                data += part
                if data.count(b"HTTP/1.1 200") == asked:
                    return "kept"
        return "cut"


async def many(port: int) -> str:
    """1,100 connections that are silent, and one more that asks."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(_connected(port)) for _ in range(1100)]
        async with _connected(port) as (reader, writer):
            writer.write(GET + b"\r\n")
            status = await _status(reader, 5.0)
        await asyncio.sleep(0.5)
        kept = sum(not reader.at_eof() and reader.exception() is None for reader, _ in opened)
    return f"{status}, {kept:,} kept"


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _status(reader: asyncio.StreamReader, patience: float = PATIENCE + 5) -> str:
    """The status of the next answer, whose body is read; or that the connection ended."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), patience)
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        await asyncio.wait_for(reader.readexactly(int(fields.get(b"content-length", b"0"))), 5)
    except (asyncio.IncompleteReadError, ConnectionError):
        return "closed"
    except TimeoutError:
        return "no answer"
    return head.split()[1].decode()


PROBES: Final[Mapping[str, Callable[[int], Awaitable[str]]]] = {
    "submits that ask for HTTP/2 (h2c)": wishes,
    "heads: 1 MiB; 1,000 fields": large_heads,
    "ambiguous heads": ambiguous_heads,
    "a connection on which nothing comes": partial(slow, b"", b""),
    "a head that drips": partial(slow, GET, b"x"),
    "a body that stalls": partial(slow, POST + b"Content-Length: 1000\r\n\r\n{", b""),
    "a body that drips": partial(slow, POST + b"Content-Length: 1000\r\n\r\n{", b" "),
    "answers that are not read": unread,
}


async def behaviour(servers: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Rows: the probe, and what became of it in each server."""
    rows = []

    async def probed(name: str, probe: Callable[[int], Awaitable[str]]) -> list[str]:
        return [name, *await asyncio.gather(*(probe(port) for _, port in servers.values()))]

    rows += await asyncio.gather(*(probed(name, probe) for name, probe in PROBES.items()))
    rows.append(await probed("1,100 silent connections, and one that asks", many))
    return rows


async def compare(rounds: int, seconds: float) -> tuple[Sequence[str], Table, list[list[str]]]:
    """Both tables."""
    async with running() as servers:
        table = await costs(servers, rounds, seconds)
        return list(servers), table, await behaviour(servers)


def main() -> None:
    """Measure and print; or serve, in a process that is measured."""
    parser = argparse.ArgumentParser("python -m benchmarks.http_servers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one round")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        uvloop.run(serve_one(asked.serve, asked.port))
        return
    names, table, rows = uvloop.run(compare(asked.rounds, asked.seconds))
    packages = ("uvicorn", "httptools", "h11", "zttp", "granian", "hypercorn")
    found = [package for package in packages if importlib.util.find_spec(package)]
    print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in found))
    print(table.text())
    print("\n".join(f"| {' | '.join(row)} |" for row in (["", *names], ["---"] * (len(names) + 1), *rows)))


if __name__ == "__main__":
    main()
