"""What metrics and traces cost a busy worker: the CPU of one task of a backlog, with each of them on against off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from threading import Thread
from typing import Any, Final

from benchmarks.backlog import WARM_UP, Consumer, worked_off
from benchmarks.backlogs import TRACED, Backlogs, Lane, open_backlogs
from benchmarks.handlers import noop
from benchmarks.lab import Lab, until
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Effort, take_turns
from taskflux.local.ports import LOOPBACK

ROUNDS: Final = 10
BACKLOGS: Final = 8
"""Of each worker in a round: short ones, in turns, since what else the machine does changes within seconds."""
TASKS: Final = 6_000
OFF: Final = "neither"
NEVER: Final = 10**9
"""One task of so many is sampled: none of a backlog."""
COLUMNS: Final = (Column("CPU µs/task", 1), Column("tasks/s"))


@dataclass(frozen=True, slots=True)
class Variant:
    """A worker with this much telemetry, and of how many tasks one is sampled."""

    settings: Mapping[str, str]
    traced: int = TRACED


async def observability(lab: Lab, effort: Effort) -> Table:
    """Tasks whose handler does nothing, in workers that differ in their telemetry."""
    rounds = max(effort.rounds, ROUNDS) if effort.scale >= 1 else effort.rounds
    samples: dict[str, list[Sample]] = {}
    async with AsyncExitStack() as stack:
        export = {"TASKFLUX_OTEL__ENDPOINT": stack.enter_context(_receiver())}
        unmetered = {"TASKFLUX_METRICS__ENABLED": "false"}
        variants = {
            OFF: Variant(unmetered),
            "metrics": Variant({}),
            "traces, none sampled": Variant(unmetered | export, traced=NEVER),
            f"traces of {100 // TRACED} %": Variant(unmetered | export),
            "traces of all": Variant(unmetered | export, traced=1),
            f"metrics, traces of {100 // TRACED} %": Variant(export),
        }
        backlogs = {}
        for name, variant in variants.items():
            (scene, *_) = (await lab.scenes([noop], ())).values()
            backlogs[name] = await stack.enter_async_context(open_backlogs(scene, variant.traced))
        for _ in range(rounds):
            for name, sample in (await _round(lab, variants, backlogs, effort.some(TASKS))).items():
                samples.setdefault(name, []).append(sample)
    title = "what metrics and traces cost: a backlog of no-op tasks, one process"
    return Table("observability", title, COLUMNS, OFF, samples)


async def _round(
    lab: Lab, variants: Mapping[str, Variant], backlogs: Mapping[str, Backlogs], tasks: int
) -> dict[str, Sample]:
    """The median of some backlogs, by a new worker for each variant: no two processes are alike."""
    lane = Lane.of_type(noop.type)
    async with AsyncExitStack() as stack:
        turns = {}
        for name, variant in variants.items():
            worker = lab.taskflux(f"benchmarks.handlers:{noop.name}", backlogs[name].scene, further=variant.settings)
            process = await stack.enter_async_context(worker)
            await backlogs[name].publish(lane, WARM_UP)
            turns[name] = partial(worked_off, Consumer(lab, backlogs[name], process, lane, tasks))
        for name in variants:
            await until(partial(backlogs[name].done, lane), "the worker has joined")
        samples = await take_turns(turns, BACKLOGS)
    columns = [column.name for column in COLUMNS]
    return {name: {each: median(one[each] for one in some) for each in columns} for name, some in samples.items()}


class _Receiver(BaseHTTPRequestHandler):
    """Takes whatever is exported, and keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Not logged."""


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
