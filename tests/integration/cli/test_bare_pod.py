"""The command where it may write nothing and has no home: in a pod with a read-only root."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from taskflux.local.ports import free_port
from taskflux.local.processes import Process as Child
from tests.integration.cli.command import Command
from tests.integration.system.stack import TASKFLUX, Stack

pytestmark = pytest.mark.slow

# No regular file may grow: every write to one fails. Output goes through pipes.
NO_FILE_MAY_GROW = ("sh", "-c", 'ulimit -f 0; exec "$@"', "sh", str(TASKFLUX))
NOWHERE = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent/cache"}
ROOT = Path("/")


@pytest.fixture
async def pod(stack: Stack) -> Command:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return Command(Command.of(stack.settings).environment | NOWHERE, NO_FILE_MAY_GROW, kept)


async def test_the_environment_has_no_home_and_no_writable_file(pod: Command, tmp_path: Path) -> None:
    writes = Command({}, ("sh", "-c", f'ulimit -f 0; echo text > "{tmp_path}/file"'), pod.inherited)
    assert (await writes()).status != 0
    assert not (tmp_path / "file").exists() or (tmp_path / "file").stat().st_size == 0


@pytest.mark.parametrize("words", [("config",), ("doctor",), ("topics",), ("tasks", "list"), ("migrate",)])
async def test_a_command_needs_neither_a_home_nor_a_file(words: tuple[str, ...], pod: Command, stack: Stack) -> None:
    direct = stack.settings.postgres.migrate_dsn
    assert direct is not None
    outcome = await pod(*words, cwd=ROOT, TASKFLUX_POSTGRES__MIGRATE_DSN=direct.get_secret_value())
    assert outcome.status == 0, outcome.out + outcome.err
    assert "Traceback" not in outcome.err


async def test_a_handler_runs_there_and_a_task_that_is_sent_from_there_succeeds(pod: Command, stack: Stack) -> None:
    log = stack.directory / "bare-simulated.log"
    environment = {**(pod.inherited or {}), **stack.environment(), **NOWHERE, "TASKFLUX_HTTP__PORT": str(free_port())}
    # Its log is a file here: a pipe takes what it says there.
    argv: list[str | Path] = [
        "sh",
        "-c",
        '(ulimit -f 0; exec "$@" 2>&1) | cat',
        "sh",
        TASKFLUX,
        "run",
        "process-simulated",
    ]
    assert (await pod("topics", "process-simulated", cwd=ROOT)).status == 0
    handler = Child("bare", argv, log=log, env=environment, cwd=ROOT)
    handler.spawn()
    try:
        sent = await pod("send", "simulated", "hello", "--wait", "--timeout", "60s", cwd=ROOT)
        assert sent.status == 0, sent.out + sent.err + handler.last_words()
        assert "succeeded" in sent.out
        failed = await pod("send", "simulated", '{"simulateFail": true}', "--max-attempts", "1", "--wait", cwd=ROOT)
        assert failed.status == 1
        assert "the task is dead (Transient: this failure was asked for)" in failed.err
    finally:
        os.killpg(handler.pid, signal.SIGTERM)
        await asyncio.wait_for(handler.wait(), 20)
    assert "Traceback" not in handler.last_words()


async def test_the_exit_status_says_whether_to_retry(pod: Command) -> None:
    refused = await pod("send", "nosuchtype", "hello", "--wait", cwd=ROOT)
    assert (refused.status, "nosuchtype" in refused.err) == (1, True)
    wrong = await pod("send", "simulated", "hello", "--timeout", "60s", cwd=ROOT)
    assert wrong.status == 2
    away = await pod("send", "simulated", "hello", "--wait", cwd=ROOT, TASKFLUX_API__URL="http://127.0.0.1:1")
    assert away.status == 3
    later = ("send", "scripted", '{"script": ["succeed"]}', "--delay", "1h")
    still_open = await pod(*later, "--wait", "--timeout", "1s", cwd=ROOT)
    assert (still_open.status, "the task is still scheduled" in still_open.err) == (4, True)
