"""What metrics and traces cost a busy worker: the CPU of one task of a backlog, with each of them on against off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final

from benchmarks.backlog import WARM_UP, Consumer, worked_off
from benchmarks.backlogs import TRACED, Backlogs, Lane, open_backlogs
from benchmarks.handlers import noop
from benchmarks.lab import Lab, until
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Effort, take_turns
from handlers.local.ports import LOOPBACK

ROUNDS: Final = 10
BACKLOGS: Final = 3
"""How many each worker works off. The cheapest counts: whatever else the machine does only adds, by up to a half."""
TASKS: Final = 20_000
OFF: Final = "neither"
COLUMNS: Final = (Column("CPU µs/task", 1), Column("tasks/s"))


async def observability(lab: Lab, effort: Effort) -> Table:
    """Tasks whose handler does nothing, in four workers that differ in what they tell of it."""
    async with AsyncExitStack() as stack:
        receiver = stack.enter_context(_receiver())
        traced = {"TASKFLUX_OTEL__ENDPOINT": receiver}
        unmetered = {"TASKFLUX_METRICS__ENABLED": "false"}
        variants: dict[str, dict[str, str]] = {
            OFF: unmetered,
            "metrics": {},
            f"traces of {100 // TRACED} %": unmetered | traced,
            "both": traced,
        }
        turns = {}
        for name, further in variants.items():
            (scene, *_) = (await lab.scenes([noop], ())).values()
            backlogs = await stack.enter_async_context(open_backlogs(scene))
            turns[name] = partial(_turn, lab, backlogs, further, effort.some(TASKS))
        samples = await take_turns(turns, max(effort.rounds, ROUNDS) if effort.scale >= 1 else effort.rounds)
    title = "what metrics and traces cost: a backlog of no-op tasks, one process"
    return Table("observability", title, COLUMNS, OFF, samples)


async def _turn(lab: Lab, backlogs: Backlogs, further: Mapping[str, str], tasks: int) -> Sample:
    """The cheapest of some backlogs, by a worker of its own: between two processes of one program lie some percent."""
    lane = Lane.of_type(noop.type)
    async with lab.taskflux(f"benchmarks.handlers:{noop.name}", backlogs.scene, further=further) as process:
        await backlogs.publish(lane, WARM_UP)
        await until(partial(backlogs.done, lane), "the worker has joined")
        samples = [await worked_off(Consumer(backlogs, process, lane, tasks)) for _ in range(BACKLOGS)]
    return min(samples, key=lambda sample: sample["CPU µs/task"])


class _Receiver(BaseHTTPRequestHandler):
    """Takes whatever is exported, and keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads about it."""


@contextmanager
def _receiver() -> Iterator[str]:
    """The address of an OTLP receiver."""
    server = ThreadingHTTPServer((LOOPBACK, 0), _Receiver)
    server.daemon_threads = True
    Thread(target=server.serve_forever, name="receiver", daemon=True).start()
    try:
        yield f"http://{LOOPBACK}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
