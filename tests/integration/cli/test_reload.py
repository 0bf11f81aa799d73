"""`taskflux run --reload` as a process, its sources changed under it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from uuid import UUID

import pytest

from taskflux.local.processes import Process as Child
from tests.integration.cli.command import ALONE
from tests.integration.system.stack import TASKFLUX, Stack, eventually

SOURCE = """
import asyncio

from taskflux import Receipt, Task, handler


@handler("reloaded", payload=dict[str, float])
async def reloaded(task: Task[dict[str, float]]) -> Receipt:
    await asyncio.sleep(task.payload.get("seconds", 0))
    return Receipt({"edition": EDITION})
"""
TARGET = "my_app.handlers:reloaded"
NOBODY = {
    "TASKFLUX_POSTGRES__DSN": "postgresql://x@127.0.0.1:1/x",
    "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "TASKFLUX_HTTP__HOST": "127.0.0.1",
    "TASKFLUX_HTTP__PORT": "0",
}


class App:
    """An application whose one source is saved again and again."""

    def __init__(self, folder: Path, environment: dict[str, str], *, flat: bool = False) -> None:
        self.source = folder / "my_app.py" if flat else folder / "my_app" / "handlers.py"
        self.source.parent.mkdir(exist_ok=True)
        self.save("EDITION = 'first'")
        target = TARGET.replace(".handlers", "") if flat else TARGET
        argv: list[str | Path] = [TASKFLUX, "run", target, "--reload"]
        self.child = Child("reload", argv, log=folder / "log", env=environment, cwd=folder)

    def save(self, line: str) -> None:
        """As editors do: another file in its place."""
        new = self.source.with_name(".new")
        new.write_text(f"{SOURCE}\n{line}\n")
        new.replace(self.source)

    async def until_it_says(self, text: str, times: int = 1) -> None:
        async def said() -> bool:
            assert self.child.running, self.child.last_words()
            return self.child.log.read_text().count(text) >= times

        try:
            await eventually(said, f"it says {text!r} {times} times")
        except AssertionError as error:
            raise AssertionError(f"{error}; it said {self.child.last_words()}") from None


def without_ours() -> dict[str, str]:
    return ALONE | {name: value for name, value in os.environ.items() if not name.startswith("TASKFLUX_")}


@pytest.mark.slow
async def test_a_change_lets_what_runs_end_and_starts_the_new_edition(stack: Stack, tmp_path: Path) -> None:
    app = App(tmp_path, stack.environment() | {"TASKFLUX_WORKER": '{"drain_seconds": 20}'})
    app.child.spawn()
    try:
        await app.until_it_says('"started"')
        under_way = await send(stack, seconds=3.0)
        await stack.until(under_way, "running")

        app.save("EDITION = 'second'")
        await app.until_it_says("my_app/handlers.py changed")
        ended = await stack.until(under_way, "succeeded")
        assert (ended["result"], ended["attempts"]) == ({"edition": "first"}, 1)
        after = await stack.until(await send(stack), "succeeded")
        assert after["result"] == {"edition": "second"}

        app.save("EDITION = (")
        await app.until_it_says("handlers.py, line 12: '(' was never closed: the old process keeps running")
        still = await stack.until(await send(stack), "succeeded")
        assert still["result"] == {"edition": "second"}

        app.save("EDITION = 'fixed'")
        await app.until_it_says('"started"', times=3)
        fixed = await stack.until(await send(stack), "succeeded")
        assert fixed["result"] == {"edition": "fixed"}
        app.child.send(signal.SIGTERM)
        assert await asyncio.wait_for(app.child.wait(), 20) == 0
        assert app.child.log.read_text().count('"stopped"') == 3
    finally:
        app.child.kill()


async def send(stack: Stack, **payload: float) -> UUID:
    async def accepted() -> UUID | None:
        answer = await stack.client.post("/tasks", json={"taskType": "reloaded", "payload": payload})
        return UUID(answer.json()["taskId"]) if answer.status_code == 202 else None

    task: UUID = await eventually(accepted, "the type is registered")
    return task


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True], ids=["a package", "a single module"])
async def test_a_process_that_fails_to_start_is_started_again_by_the_next_save(flat: bool, tmp_path: Path) -> None:
    app = App(tmp_path, without_ours() | NOBODY, flat=flat)
    app.save("EDITION = undefined_name")
    app.child.spawn()
    try:
        await app.until_it_says("it ended with status 1; it is started again at the next change")
        app.save("EDITION = 'fixed'")
        await app.until_it_says("waiting for PostgreSQL")
        (tmp_path / "beside_it.py").write_text("x = 1\n")
        app.save("EDITION = (")
        await app.until_it_says("was never closed")
        assert "beside_it" not in app.child.log.read_text()
        app.child.send(signal.SIGINT)
        assert await asyncio.wait_for(app.child.wait(), 20) == 0
    finally:
        app.child.kill()


async def call(*words: str, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *words,
        env=without_ours() | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_without_watchfiles_it_says_what_to_install() -> None:
    hidden = "import sys; sys.modules['watchfiles'] = None; from taskflux.cli import main; main()"
    status, said = await call(sys.executable, "-c", hidden, "run", "relay", "--reload", **NOBODY)
    assert (status, said) == (
        1,
        "taskflux: --reload needs watchfiles, which is not installed: pip install watchfiles\n",
    )


@pytest.mark.parametrize(
    ("name", "variables", "status", "says"),
    [
        ("nosuch", {}, 1, "there is no handler 'nosuch'"),
        ("nosuch_app.handlers:x", {}, 1, "there is no module 'nosuch_app'"),
        (":x", {}, 1, "cannot be imported"),
        ("relay", {"TASKFLUX_HTTP__PORT": "eighty"}, 2, "TASKFLUX_HTTP__PORT"),
    ],
)
async def test_an_error_that_no_source_change_can_fix_ends_it(
    name: str, variables: dict[str, str], status: int, says: str
) -> None:
    ended, said = await call(str(TASKFLUX), "run", name, "--reload", **{**NOBODY, **variables})
    assert (ended, says in said, "Traceback" in said) == (status, True, False), said


async def test_without_reload_a_handler_starts_without_its_code() -> None:
    status, said = await call(sys.executable, "-X", "importtime", "-m", "taskflux", "run", "process-simulated")
    assert (status, "taskflux.worker.process\n" in said) == (2, True)
    assert "taskflux.cli.reload" not in said
    assert "watchfiles" not in said
