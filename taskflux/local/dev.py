"""`taskflux dev`: the embedded stack and every handler, in one command, until Ctrl-C; and the samples that it sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx

from taskflux.local import environment, observe
from taskflux.local.console import Console, Echo, LogTail, Trouble, from_os_error, rotate
from taskflux.local.processes import Notes, end_noted, holder_of, locked
from taskflux.local.stack import Stack, list_own
from taskflux.local.supervisor import CLI, Supervisor
from taskflux.providers.answers import UNPACKED, Answer, ask
from taskflux.tasks.states import ENDED

DETACHED: Final = "--detached"
STOPS_IT: Final = "`taskflux dev --stop` stops it."
STOP_WAIT: Final = 90.0
"""Seconds that a stack may take to end."""

WAIT: Final = 60.0
"""Seconds after which a sample that has not succeeded is given up."""

TIMEOUT: Final = 10.0
"""Seconds that one answer may take."""

MOST_BYTES: Final = 1024 * 1024
"""Bytes of an answer that are read."""

SAMPLES: Final[tuple[dict[str, Any], ...]] = (
    {
        "taskType": "email",
        "payload": {
            "to": "ada@example.org",
            "subject": "Hello from TaskFlux",
            "body": "This mail went through PostgreSQL, Kafka and a handler, and did not leave your machine.\n",
            "html": "<h2>Hello from TaskFlux</h2><p>This mail went through PostgreSQL, Kafka and a handler,"
            " and did not leave your machine.</p>",
        },
    },
    {"taskType": "sms", "payload": {"mobile": "919800000000", "name": "Ada"}},
    {"taskType": "simulated", "payload": {"delayMs": 250}},
)


def main(
    port: int,
    data_dir: Path,
    samples: bool,
    observed: bool = False,
    own: Sequence[str] = (),
    *,
    detached: bool = False,
    cli: tuple[str, ...] = CLI,
) -> int:
    """Run until SIGINT or SIGTERM; answers the exit code: 0 after that, 1 when it could not start.

    `observed`: with Prometheus and Grafana, where they are installed. `own` names modules with handlers of the
    person's own. `detached`: no terminal is there, so that Ctrl-C does not stop it. `cli` is the command that knows
    `run <handler>`, `handlers`, `migrate`, `topics` and `end-leases`.
    """
    console = Console()
    # Absolute, and without links: the name under which the next run finds what this one left.
    directory = data_dir.expanduser().resolve()
    console.title("TaskFlux", f"data in {data_dir}")
    try:
        with locked(directory) as lock:
            lock.write(f"process {os.getpid()}")
            lock.flush()
            environment.withdraw(directory)
            try:
                running = _Run(console, directory, port, cli, observed, detached)
                return asyncio.run(running.until_told_to_stop(samples, own))
            finally:
                environment.withdraw(directory)
    except Trouble as trouble:
        console.failure(str(trouble))
    except OSError as error:
        console.failure(str(from_os_error(error, f"working in {data_dir}")))
    return 1


def detach(words: Sequence[str], data_dir: Path, *, cli: tuple[str, ...] = CLI) -> int:
    """Start `taskflux dev` with these words in the background; return once it serves (0), or could not start (1).

    What it says is shown until then, and goes to logs/dev.log in its data directory.
    """
    console = Console()
    directory = data_dir.expanduser().resolve()
    log = directory / "logs" / "dev.log"
    try:
        with locked(directory):  # nobody else holds it, and it is there
            log.parent.mkdir(exist_ok=True)
            rotate(log)
        argv = [*cli, "dev", *words, DETACHED]
        output = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        streams = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), output, (os.POSIX_SPAWN_DUP2, 1, 2)]
        child = os.posix_spawn(argv[0], argv, os.environ, file_actions=streams, setsid=True)
    except Trouble as trouble:
        console.failure(str(trouble))
        return 1
    except OSError as error:
        console.failure(str(from_os_error(error, f"working in {data_dir}")))
        return 1
    tail = LogTail(log)
    try:
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            for line in tail.read():
                console.line(line)
                if STOPS_IT in line:
                    console.line()
                    return 0
            if ended:
                return abs(os.waitstatus_to_exitcode(status))
            time.sleep(0.1)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise


def stop(directory: Path) -> bool:
    """End the `taskflux dev` that holds this data directory; True: it has ended.

    Raises:
        OSError: it is not ours to end.
    """
    holder = holder_of(directory)
    if holder:
        os.kill(holder, signal.SIGTERM)
    deadline = time.monotonic() + STOP_WAIT
    while holder_of(directory) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


class _Run:
    """One run, from the first server's start to the last one's end."""

    def __init__(
        self, console: Console, data_dir: Path, port: int, cli: tuple[str, ...], observed: bool, detached: bool
    ) -> None:
        self._console = console
        self._data_dir = data_dir
        self._port = port
        self._cli = cli
        self._observed = observed
        self._detached = detached
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def until_told_to_stop(self, samples: bool, own: Sequence[str]) -> int:
        """Start, serve, stop; answers the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._told)
        notes_file = self._data_dir / "children.json"
        for name in await end_noted(notes_file):
            self._console.note(f"{name} was left from a former run: ended")
        supervisor = Supervisor(self._console, Notes(notes_file))
        try:
            serving = asyncio.create_task(self._serve(supervisor, samples, own))
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        finally:
            await supervisor.stop(self._hurry)
        self._console.line("  Stopped.\n")
        return 0

    async def _serve(self, supervisor: Supervisor, samples: bool, names: Sequence[str]) -> None:
        """Start and show what happens until cancelled."""
        own_environment = environment.without_former(os.environ, self._data_dir)
        own = await list_own(names, own_environment, self._cli)
        stack = Stack(
            self._data_dir,
            self._port,
            console=self._console,
            supervisor=supervisor,
            own_environment=own_environment,
            own=own,
            cli=self._cli,
        )
        echo = Echo(self._console, stack.logs(), whole=own.targets)
        echo.outcomes = False
        following = [asyncio.create_task(echo.run()), asyncio.create_task(stack.watch(echo))]
        try:
            await stack.start()
            opened = await self._observe(stack, supervisor) if self._observed else []
            environment.publish(self._data_dir, stack.environment_of_commands(), own_environment)
            self._console.title(f"Serving on {stack.url}", f"{stack.url}/docs")
            if samples:
                await send_samples(stack.url, self._console, stack.inbox_url)
                self._console.line()
            if stack.inbox_url is not None:
                self._console.line(f"  Inbox  {self._console.bold(stack.inbox_url)}")
            for what, address in opened:
                self._console.line(f"  {what}  {self._console.bold(address)}")
            self._console.line(f"  Logs   {self._data_dir / 'logs'}")
            if own.types:
                self._console.line(f"  Send   taskflux send {next(iter(own.types.values()))} '…' --wait")
            self._console.line(f"\n  {self._console.soft(STOPS_IT if self._detached else 'Ctrl-C stops.')}\n")
            echo.look()  # the samples' own outcomes are known
            echo.outcomes = True
            await asyncio.gather(*following)
        finally:
            for each in following:
                each.cancel()
            await asyncio.wait(following)

    async def _observe(self, stack: Stack, supervisor: Supervisor) -> list[tuple[str, str]]:
        target = stack.url.removeprefix("http://")
        return await observe.start(self._data_dir, target, self._console, supervisor)

    def _told(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
            return
        hint = "" if self._detached else self._console.soft(" (Ctrl-C again: at once)")
        self._console.line(f"\n  Stopping: running attempts may finish{hint}")
        self._stop.set()


async def send_samples(base_url: str, console: Console, inbox: str | None) -> bool:
    """Submit the samples to ingest at `base_url`, show each one's timeline; True when all succeeded.

    `inbox` is the address of the inbox where mail and SMS can be seen, if they go there.
    """
    async with httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT, trust_env=False, headers=UNPACKED) as client:
        followed = [asyncio.create_task(_follow(client, sample)) for sample in SAMPLES]
        try:
            good = True
            for sample, following in zip(SAMPLES, followed, strict=True):
                good &= _show(console, str(sample["taskType"]), await following)
                if inbox is not None and sample["taskType"] in ("email", "sms"):
                    await _show_where(client, console, inbox, sample)
        finally:
            for following in followed:
                following.cancel()
    if not good:
        console.warning("samples", "not every sample succeeded: the lines above and the logs say why")
    return good


async def _follow(client: httpx.AsyncClient, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Submit one and ask after it until it has ended or `WAIT` is over; its last known state, or a `problem`."""
    deadline = time.monotonic() + WAIT
    task: dict[str, Any] = {}
    try:
        answer = await _ask(client, "POST", "/tasks", json=dict(sample))
        if answer.status != 202:
            return {"problem": f"refused with {answer.status}: {answer.body[:200].decode(errors='replace')}"}
        where = f"/tasks/{json.loads(answer.body)['taskId']}"
        while task.get("status") not in ENDED:
            if time.monotonic() > deadline:
                return {**task, "problem": f"has not ended within {WAIT:.0f} s"}
            await asyncio.sleep(0.1)
            found = await _ask(client, "GET", where)
            if found.status == 200:
                task = json.loads(found.body)
    except (httpx.HTTPError, TimeoutError, ValueError, KeyError) as error:
        return {**task, "problem": f"cannot be followed: {type(error).__name__} {error}".rstrip()}
    return task


async def _ask(client: httpx.AsyncClient, method: str, url: str, **more: Any) -> Answer:
    request = client.build_request(method, url, **more)
    return await ask(client, request, None, seconds=TIMEOUT, most=MOST_BYTES)


def _show(console: Console, name: str, task: dict[str, Any]) -> bool:
    """The task's timeline as lines; True when it succeeded."""
    status = str(task.get("status", "unknown"))
    good = status == "succeeded"
    took = duration(task)
    text = task.get("problem") or (status + (f" after {took}" if took and good else ""))
    console.outcome(name, f"{console.bold(str(text))}  {console.soft(str(task.get('taskId', '')))}", good)
    for line in timeline(task.get("timeline") or []):
        console.line(f"      {console.soft(line)}")
    if not good and task.get("error"):
        console.line(f"      {task['error']}")
    return good


def timeline(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A timeline as lines: seconds since its beginning, the state, what happened, and what was noted with it."""
    if not entries:
        return []
    began = datetime.fromisoformat(str(entries[0]["at"]))
    lines = []
    for entry in entries:
        since = (datetime.fromisoformat(str(entry["at"])) - began).total_seconds()
        attempt = f"attempt {entry['attempt']}" if entry.get("attempt") else ""
        beside = " · ".join(str(each) for each in (entry.get("event"), attempt, entry.get("note")) if each)
        lines.append(f"{since:8.3f} s  {entry.get('state', ''):<10} {beside}".rstrip())
    return lines


def duration(task: Mapping[str, Any]) -> str:
    """How long the timeline spans, for people; empty without one."""
    entries = task.get("timeline") or []
    if not entries:
        return ""
    first, last = (datetime.fromisoformat(str(entries[at]["at"])) for at in (0, -1))
    return f"{(last - first).total_seconds():.2f} s"


async def _show_where(client: httpx.AsyncClient, console: Console, inbox: str, sample: Mapping[str, Any]) -> None:
    """The address of the newest message of this kind in the inbox."""
    try:
        wanted = {"kind": str(sample["taskType"]), "limit": 1}
        answer = await _ask(client, "GET", f"{inbox}/api/messages", params=wanted)
        newest = json.loads(answer.body)["messages"]
    except (httpx.HTTPError, TimeoutError, ValueError, KeyError):
        return
    if newest:
        console.line(f"      {console.soft('to be seen at')} {inbox}/#{newest[0]['id']}")
