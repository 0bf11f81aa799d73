"""`taskflux dev` as a process, over a program with our commands and none of their work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from taskflux.local.dev import detach, stop
from taskflux.local.environment import NotServing, look_at
from taskflux.local.ports import free_port
from taskflux.local.processes import holder_of

TINY_DEV = Path(__file__).with_name("tiny_dev.py")
TINY_CLI = (sys.executable, str(Path(__file__).with_name("tiny_cli.py")))
OWN_SERVERS = {
    "TASKFLUX_POSTGRES__DSN": "postgresql://db.example/x",
    "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": "kafka.example:9092",
    "TASKFLUX_REDIS__URL": "redis://redis.example/0",
    "TASKFLUX_SMTP__HOST": "smtp.example",
    "TASKFLUX_MSG91__AUTH_KEY": "key",
}
PARTS = (
    *("postgres", "valkey", "kafka", "smtp", "inbox"),
    *("ingest", "relay", "process-email", "process-sms", "process-simulated", "notify", "dlq-sink"),
)
OWN = ("first", "second")
"""The tests' own handlers."""


class Dev:
    """A running `tiny_dev.py`; what it says is waited for line by line."""

    def __init__(self, process: asyncio.subprocess.Process, data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.said: list[str] = []

    async def says(self, *texts: str, within: float = 60) -> str:
        """Read on until a line has all of these texts; answers the line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within):
            while line := (await self.process.stdout.readline()).decode():
                self.said.append(line)
                if all(text in line for text in texts):
                    return line
        raise AssertionError(f"it never said {texts}, but:\n{''.join(self.said)}")

    async def has_said(self, *texts: str) -> None:
        """The same, where the line may have come already: what processes say comes in any order."""
        if not any(all(text in line for text in texts) for line in self.said):
            await self.says(*texts)

    async def ends(self, within: float = 30) -> int:
        assert self.process.stdout is not None
        async with asyncio.timeout(within):
            self.said.append((await self.process.stdout.read()).decode())
            return await self.process.wait()

    def children(self) -> dict[str, int]:
        noted: dict[str, tuple[int, float]] = json.loads((self.data_dir / "children.json").read_text())
        return {name: pid for name, (pid, _) in noted.items()}

    def calls(self) -> list[str]:
        return (self.data_dir / "calls").read_text().splitlines()

    @property
    def dsn(self) -> str:
        password = (self.data_dir / "postgres.password").read_text()
        port = json.loads((self.data_dir / "ports.json").read_text())["postgres"]
        return f"postgresql://postgres:{password}@127.0.0.1:{port}/taskflux?sslmode=disable"


def remember_free_ports(data_dir: Path) -> None:
    """Keep a new data directory away from the usual ports: a developer's own stack may be starting on them."""
    if not data_dir.exists():
        data_dir.mkdir()
        (data_dir / "ports.json").write_text(json.dumps({name: free_port() for name in (*PARTS, *OWN)}))


@pytest.fixture
def folder(servers_dir: Path) -> Path:
    """Not among pytest's own, which each other run of pytest closes to PostgreSQL's user again."""
    return Path(tempfile.mkdtemp(dir=servers_dir))


@asynccontextmanager
async def dev(data_dir: Path, port: int, *modules: str, **environment: str) -> AsyncIterator[Dev]:
    """It is called in the folder of its data directory."""
    remember_free_ports(data_dir)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLUX_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        TINY_DEV,
        str(port),
        data_dir,
        *modules,
        cwd=data_dir.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**clean, **environment},
    )
    try:
        yield Dev(process, data_dir)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def gone(*pids: int) -> None:
    """Wait for the end of processes, whoever's children they are."""
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = await asyncio.to_thread(psutil.wait_procs, left, 15)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


async def rows(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_it_starts_serves_keeps_what_dies_running_and_ends_cleanly(folder: Path) -> None:
    port = free_port()
    async with dev(folder / "data", port) as running:
        await running.says(f"Serving on http://127.0.0.1:{port}")
        assert running.calls()[0] == "migrate"
        assert {*running.calls()[1:3]} == {"topics", "end-leases"}
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
        children = running.children()
        assert {"PostgreSQL", "Valkey", "Kafka (Tansu)", "inbox", "ingest", "relay", "dlq-sink"} < children.keys()
        assert all(os.getsid(pid) != os.getsid(0) for pid in children.values()), "a Ctrl-C would hit them"

        os.kill(children["process-email"], signal.SIGKILL)
        await running.says("process-email", "ended (SIGKILL)")
        await running.says("process-email", "is back")
        assert f"end-leases --pid {children['process-email']}" in running.calls()

        os.kill(children["Kafka (Tansu)"], signal.SIGKILL)
        await running.says("Kafka (Tansu)", "is back")
        assert running.calls().count("topics") == 2

        await rows(running.dsn, "CREATE TABLE kept AS SELECT 7 AS seven")
        os.kill(children["PostgreSQL"], signal.SIGKILL)
        await running.says("PostgreSQL", "is back")
        assert await rows(running.dsn, "SELECT seven FROM kept") == 7
        untouched = {name: pid for name, pid in running.children().items() if children[name] == pid}
        assert untouched.keys() == children.keys() - {"process-email", "Kafka (Tansu)", "PostgreSQL"}

        last = running.children().values()
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 0
        await gone(*last)
        assert "Traceback" not in "".join(running.said)


@pytest.mark.slow
async def test_killed_it_leaves_nothing_running_and_starts_again_where_it_was(folder: Path) -> None:
    port = free_port()
    async with dev(folder / "data", port) as running:
        await running.says("Serving on")
        await rows(running.dsn, "CREATE TABLE kept AS SELECT 7 AS seven")
        dsn, children = running.dsn, running.children()
        running.process.kill()
        await running.process.communicate()
    async with dev(folder / "data", port) as again:  # at once: the next start waits for what still ends
        await again.says(f"Serving on http://127.0.0.1:{port}")
        await gone(*children.values())
        assert again.dsn == dsn
        assert await rows(dsn, "SELECT seven FROM kept") == 7

        async with dev(folder / "data", free_port()) as second:
            assert await second.ends() == 1
            assert f"another taskflux dev runs on {folder / 'data'} (process {again.process.pid})" in second.said[-1]

        again.process.send_signal(signal.SIGTERM)
        assert await again.ends() == 0


@pytest.mark.slow
async def test_servers_of_ones_own_are_used_and_not_started(folder: Path) -> None:
    async with dev(folder / "data", free_port(), **OWN_SERVERS) as running:
        await running.says("Serving on")
        handlers = {"ingest", "relay", "process-email", "process-sms", "process-simulated", "notify", "dlq-sink"}
        assert running.children().keys() == handlers
        assert not (folder / "data" / "postgres").exists()


async def test_a_taken_port_is_passed_over_and_said(folder: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as taken:
        port = taken.sockets[0].getsockname()[1]
        async with dev(folder / "data", port, **OWN_SERVERS) as running:
            said = await running.says(f"port {port} is taken")
            await running.says("Serving on")
            found = look_at(folder / "data")
            assert found is not None
            assert found.variables["TASKFLUX_API__URL"] != f"http://127.0.0.1:{port}", (
                "commands find the one that is used"
            )
            assert f": {json.loads((folder / 'data' / 'ports.json').read_text())['ingest']} is used" in said


@pytest.mark.slow
async def test_a_start_that_fails_ends_with_a_sentence_and_leaves_nothing(folder: Path) -> None:
    data_dir = folder / "data"
    async with dev(data_dir, free_port()) as running:
        (data_dir / "inbox.sqlite").mkdir()
        assert await running.ends() == 1
        assert "inbox did not start: the inbox cannot serve" in running.said[-1]
        assert "Traceback" not in "".join(running.said)
    assert json.loads((data_dir / "children.json").read_text()) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
async def test_told_to_stop_while_it_starts_it_stops(folder: Path, number: signal.Signals) -> None:
    async with dev(folder / "data", free_port(), **OWN_SERVERS) as running:
        await running.says("POSTGRES: your own")
        running.process.send_signal(number)
        assert await running.ends() == 0
        assert "Stopped." in running.said[-1]


async def test_in_the_background_it_runs_until_it_is_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir, port = folder / "data", free_port()
    remember_free_ports(data_dir)
    for name, value in OWN_SERVERS.items():
        monkeypatch.setenv(name, value)
    words = ["--port", str(port), "--data-dir", str(data_dir)]
    try:
        assert await asyncio.to_thread(detach, words, data_dir, cli=TINY_CLI) == 0
        said = capfd.readouterr().out
        assert f"Serving on http://127.0.0.1:{port}" in said
        assert "`taskflux dev --stop` stops it." in said
        assert "Ctrl-C" not in said
        assert look_at(data_dir) is not None

        assert await asyncio.to_thread(detach, words, data_dir, cli=TINY_CLI) == 1
        assert "another taskflux dev runs on" in capfd.readouterr().out
    finally:
        holder = holder_of(data_dir)
        assert await asyncio.to_thread(stop, data_dir)
    assert holder is not None
    await gone(holder)
    assert json.loads((data_dir / "children.json").read_text()) == {}
    assert "Stopped." in (data_dir / "logs" / "dev.log").read_text()


@pytest.mark.slow
async def test_in_the_background_a_start_that_fails_is_told_and_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir = folder / "data"
    remember_free_ports(data_dir)
    (data_dir / "peers.json").mkdir()
    monkeypatch.setenv("TASKFLUX_SMTP__HOST", "smtp.example")
    words = ["--port", str(free_port()), "--data-dir", str(data_dir)]
    assert await asyncio.to_thread(detach, words, data_dir, cli=TINY_CLI) == 1
    assert "✗ working in" in capfd.readouterr().out


HANDLERS = """
from taskflux import Receipt, Task, handler


@handler("first", payload=str)
async def first(task: Task[str]) -> Receipt:
    return Receipt()
"""
SECOND = """

@handler("second", payload=str)
async def second(task: Task[str]) -> Receipt:
    return Receipt()
"""


@dataclass(frozen=True, slots=True)
class App:
    """An application in a folder of its own, as a person has it."""

    home: Path

    @property
    def data_dir(self) -> Path:
        return self.home / ".taskflux"

    def save(self, source: str) -> None:
        """Save the source of its handlers, as an editor does: another file in its place."""
        file = self.home / "my_app" / "handlers.py"
        part = file.with_name(".handlers.py.part")
        part.write_text(source)
        part.replace(file)

    def peers(self) -> dict[str, str]:
        """Where ingest asks for metrics."""
        found: dict[str, str] = json.loads((self.data_dir / "peers.json").read_text())
        return found


@pytest.fixture
def my_app(folder: Path) -> App:
    app = App(folder / "my app")
    (app.home / "my_app").mkdir(parents=True)
    (app.home / "my_app" / "__init__.py").touch()
    app.save(HANDLERS)
    return app


@pytest.mark.slow
async def test_handlers_of_ones_own_run_beside_the_built_in_ones_and_are_looked_after_like_them(my_app: App) -> None:
    async with dev(my_app.data_dir, free_port(), "my_app.handlers", **OWN_SERVERS) as running:
        await running.says("Serving on")
        await running.has_said("│ first", "my_app.handlers:first speaks")
        assert {"ingest", "process-email", "first"} < running.children().keys()
        peers = my_app.peers()
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(peers["first"].replace("/metrics", "/readyz"))).status_code == 200

        died = running.children()["first"]
        os.kill(died, signal.SIGKILL)
        await running.says("first", "ended (SIGKILL)")
        await running.says("first", "is back")
        assert f"end-leases --pid {died}" in running.calls()

        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 0


@pytest.mark.slow
async def test_a_save_starts_them_anew_and_one_that_is_broken_keeps_the_old_process_running(my_app: App) -> None:
    async with dev(my_app.data_dir, free_port(), "my_app.handlers", **OWN_SERVERS) as running:
        await running.says("Ctrl-C stops")
        first = running.children()["first"]

        my_app.save(HANDLERS + "x = (\n")
        await running.says("not reloaded", "SyntaxError: '(' was never closed, in my_app/handlers.py at line 8")
        my_app.save(HANDLERS + "x = y\n")
        await running.says("not reloaded", "NameError: name 'y' is not defined, in my_app/handlers.py at line 8")
        my_app.save(HANDLERS.replace('"first"', '"email"'))
        await running.says("not reloaded", "(my_app/handlers.py:5)", "which is the built-in process-email's")
        assert running.children()["first"] == first

        my_app.save(HANDLERS + SECOND)
        await running.says("first", "is reloaded")
        assert running.children()["first"] != first
        assert "second" in my_app.peers()

        my_app.save(HANDLERS)
        await running.says("second", "is removed")
        await running.says("first", "is reloaded")
        assert "second" not in running.children()
        assert "second" not in my_app.peers()


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        ("my_app.nosuch", HANDLERS, "'my_app.nosuch' cannot be imported: there is no module 'my_app.nosuch'"),
        ("my_app.handlers", "x = 1\n", "'my_app.handlers' (my_app/handlers.py) has no handler"),
        (
            "my_app.handlers",
            "import os\n\nos.environ['NOT_SET']\n",
            "KeyError: 'NOT_SET', in my_app/handlers.py at line 3",
        ),
        (
            "my_app.handlers",
            HANDLERS.replace('"first"', '"email"'),
            "(my_app/handlers.py:5) declares the task type 'email'",
        ),
        ("my_app.handlers", "import os\nos._exit(3)\n", "importing my_app.handlers ended the process"),
    ],
)
async def test_what_cannot_be_run_is_a_sentence_and_starts_nothing(
    my_app: App, module: str, source: str, says: str
) -> None:
    my_app.save(source)
    async with dev(my_app.data_dir, free_port(), module, **OWN_SERVERS) as running:
        assert await running.ends(within=90) == 1
    said = "".join(running.said)
    assert says in said
    assert "Traceback" not in said
    assert "✓" not in said
    assert not (my_app.data_dir / "calls").exists()


@pytest.mark.slow
async def test_one_that_replaces_a_built_in_handler_runs_instead_of_it(my_app: App) -> None:
    my_app.save(HANDLERS.replace('"first", payload=str', '"email", payload=str, replaces=True'))
    async with dev(my_app.data_dir, free_port(), "my_app.handlers:first", **OWN_SERVERS) as running:
        await running.says("Serving on")
        assert "first" in running.children()
        assert "process-email" not in running.children()
        assert "topics --without process-email" in running.calls()


@pytest.mark.slow
async def test_it_is_found_while_it_serves_and_not_after(my_app: App) -> None:
    async with dev(my_app.data_dir, free_port(), **OWN_SERVERS) as running:
        await running.says("Serving on")
        found = look_at(my_app.data_dir)
        assert found is not None
        assert OWN_SERVERS.items() <= found.variables.items()
        assert stat.S_IMODE((my_app.data_dir / "environment.json").stat().st_mode) == 0o600
        running.process.send_signal(signal.SIGTERM)
        assert await running.ends() == 0
        assert look_at(my_app.data_dir) is None
    async with dev(my_app.data_dir, free_port(), **OWN_SERVERS) as running:
        await running.says("Serving on")
        running.process.kill()
        await running.process.communicate()
        with pytest.raises(NotServing, match="has ended without cleaning up"):
            look_at(my_app.data_dir)
