"""`python -m benchmarks.guard`: fails when a task costs the worker, ingest or PostgreSQL a fifth more than expected.

Nothing is timed. The instructions of the real worker and of the real ingest are counted by Valgrind, and what their
statements took of PostgreSQL by pg_stat_statements: buffers and bytes of WAL of each. Neither depends on how fast the
machine is or what else it does. What remains is how records and requests fall into batches; that only ever adds, so
the least of the rounds counts. The limit lies below the 30 % that must be noticed.

`guard.json` has what is expected, for each Python and processor; `--write` writes it anew, after a change that is
meant. Two builds of the same Python differ: `floors/interpreter.py` is counted beside them, and scales what is
expected.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any, Final

import asyncpg

from benchmarks import callgrind
from benchmarks.backlogs import Lane, open_backlogs
from benchmarks.callgrind import Instructions
from benchmarks.client import Connection, post
from benchmarks.handlers import noop
from benchmarks.lab import ROOT, Build, Lab, Scene, answers, open_lab, until
from benchmarks.submit import UNPUBLISHED, Load
from benchmarks.writes import SERVER
from taskflux.local.console import Trouble, gist
from taskflux.local.ports import free_port
from taskflux.local.processes import Process
from taskflux.store.database import statements

EXPECTED: Final = Path(__file__).with_name("guard.json")
LIMIT: Final = 1.2
CHEAPER: Final = 0.9
"""A cost below this share of what is expected should be written down, or the guard notices too little."""
ATTEMPTS: Final = 2
"""What costs too much is measured again with new processes and servers; the least counts."""
SKIP: Final = 75

INSTRUCTIONS: Final = "instructions"
REFERENCE: Final = "reference"
POSTGRES: Final = "PostgreSQL"
WORKER, SINGLE, BATCH = "worker", "ingest, single submits", "ingest, batches"

ROUNDS: Final = 3
TASKS: Final = 1000
"""Of a round of the worker, and of a batch."""
CROWD: Final = 32
CROWDS: Final = 10
"""So many times in a round, as many clients as CROWD submit at once."""
BATCHES: Final = 2
ITEMS: Final = (50, 2050)

# What would come by time is switched off, nothing ends because a process is slow, and the worker has room for each
# fetch, so that its batches do not depend on how fast PostgreSQL answers.
SETTINGS: Final = {
    "TASKFLUX_LOG__LEVEL": "WARNING",
    "TASKFLUX_WORKER__CONCURRENCY": "1000",
    "TASKFLUX_WORKER__LEASE_SECONDS": "3600",
    "TASKFLUX_WORKER__BEAT_SECONDS": "1200",
    "TASKFLUX_KAFKA__FETCH_MAX_WAIT_MS": "1000",
    "TASKFLUX_KAFKA__SESSION_TIMEOUT": "60",
    "TASKFLUX_KAFKA__REQUEST_TIMEOUT": "300",
    "TASKFLUX_KAFKA__PRODUCE_TIMEOUT": "300",
    "TASKFLUX_RELAY__GRACE": "3600",
    "TASKFLUX_POSTGRES__STATEMENT_TIMEOUT": "300",
    "PYTHONHASHSEED": "0",
    "PYTHONPYCACHEPREFIX": "",
}
UNHURRIED: Final = (
    "from taskflux.worker import attempt; attempt.TURN = 3600.0; from taskflux.__main__ import main; main()"
)
"""`taskflux`, but attempts that end without waiting have as long a turn as it takes."""
STATEMENTS: Final = {**SERVER, "fsync": "off", "shared_preload_libraries": "pg_stat_statements"}
UNCOUNTED: Final = "SET pg_stat_statements.track = 'none'"
FORGET: Final = "SELECT pg_stat_statements_reset(0, oid, 0) FROM pg_database WHERE datname = current_database()"
TAKEN: Final = """
    SELECT query, (shared_blks_hit + shared_blks_read)::float8 AS "buffers", wal_bytes::float8 AS "WAL bytes"
    FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
NEGLIGIBLE: Final = {"buffers": 0.5, "WAL bytes": 50.0}
"""A statement that takes less than this for a task is not expected: some come by time, or once."""
FILES: Final = tuple(map(statements, ("claims", "publishing", "tasks", "upkeep")))
WORD: Final = re.compile(r"[a-z_]{3,}")
CONSTANT: Final = re.compile(r"'[^']*'|--.*")
ALL: Final = "all statements"
ALIKE: Final = 0.7
"""Share of its words that a statement and what PostgreSQL has noted of it have in common, at least."""

Costs = dict[str, dict[str, float]]
"""Path of a task → cost → how much of it a task takes. The path REFERENCE has the instructions of an item."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One cost of one path, beside what is expected."""

    path: str
    cost: str
    measured: float
    expected: float

    @property
    def excess(self) -> float:
        """How many times what is expected."""
        return self.measured / self.expected

    @property
    def passed(self) -> bool:
        """Whether it is below the limit."""
        return self.excess < LIMIT

    def __str__(self) -> str:
        said = f", the limit is {LIMIT - 1:+.0%}" if not self.passed else ", cheaper" if self.excess < CHEAPER else ""
        measured, expected = (f"{each:,.{0 if each >= 100 else 1}f}" for each in (self.measured, self.expected))
        return f"{self.path}: {measured} {self.cost} a task, {expected} expected: {self.excess - 1:+.1%}{said}"


def here() -> str:
    """The Python and processor whose instructions are counted."""
    return f"Python {'.'.join(platform.python_version_tuple()[:2])} on {platform.machine()}"


def verdicts(found: Costs, document: Mapping[str, Costs]) -> list[Verdict]:
    """Each cost beside what is expected of this Python, scaled to this build of it.

    Raises:
        Trouble: a path is not in the document.
    """
    counted, postgres = document[here()], document[POSTGRES]
    build = found[REFERENCE][INSTRUCTIONS] / counted[REFERENCE][INSTRUCTIONS]
    made = []
    for path, costs in found.items():
        if path == REFERENCE:
            continue
        if path not in counted or path not in postgres:
            raise Trouble(f"{EXPECTED.name} has nothing for {path}: run make bench-guard ARGS=--write")
        for cost, measured in costs.items():
            known = counted[path][cost] * build if cost == INSTRUCTIONS else postgres[path].get(cost)
            if known is not None:  # what is new counts among all statements
                made.append(Verdict(path, cost, measured, known))
    return made


def advice(found: Sequence[Verdict]) -> list[str]:
    """What to do about them."""
    raised = [each for each in found if not each.passed]
    lowered = [each for each in found if each.excess < CHEAPER]
    if raised:
        paths = ", ".join(dict.fromkeys(each.path for each in raised))
        return [
            f"a task costs more than {LIMIT - 1:+.0%} of what is expected: {paths}.",
            "Find what the change has added. If it is meant, run make bench-guard ARGS=--write, commit",
            f"benchmarks/{EXPECTED.name} with it, and say in the commit what the task pays for.",
        ]
    if lowered:
        return [f"a task has become cheaper: make bench-guard ARGS=--write, and commit benchmarks/{EXPECTED.name}"]
    return []


def least(some: Costs, others: Costs) -> Costs:
    """The least of each cost."""
    return {
        path: {cost: min(each, others[path].get(cost, 0.0)) for cost, each in costs.items()}
        for path, costs in some.items()
    }


def written(found: Costs, document: Mapping[str, Costs]) -> dict[str, Costs]:
    """The document with what was found; other Pythons and processors keep what they have."""
    counted = {path: {INSTRUCTIONS: float(round(costs[INSTRUCTIONS]))} for path, costs in found.items()}
    postgres = {
        path: {
            cost: round(each, 2)
            for cost, each in costs.items()
            if cost != INSTRUCTIONS and each >= NEGLIGIBLE[cost.partition(" by ")[0]]
        }
        for path, costs in found.items()
        if path != REFERENCE
    }
    return {**document, POSTGRES: postgres, here(): counted}


@dataclass
class Subject:
    """A process that is measured, and its database as somebody sees it whose own statements do not count."""

    counter: Instructions
    connection: Any

    async def round(
        self, tasks: int, prepare: Callable[[], Awaitable[None]], work: Callable[[], Awaitable[None]]
    ) -> dict[str, float]:
        """What `work`, which is `tasks` tasks, costs each of them; the process is stopped while it is prepared."""
        await self.counter.zero()
        self.counter.process.send(SIGSTOP)
        try:
            await prepare()
            await self.connection.execute(FORGET)
        finally:
            self.counter.process.send(SIGCONT)
        await work()
        counted = await self.counter.read()
        taken: Counter[str] = Counter()
        for row in await self.connection.fetch(TAKEN):
            name = statement(row["query"])
            for cost in NEGLIGIBLE:
                taken.update({f"{cost} by {each}": row[cost] / tasks for each in (name, ALL)})
        return {INSTRUCTIONS: counted / tasks, **taken}


@cache
def statement(query: str) -> str:
    """The name of the statement of the store that PostgreSQL has noted as `query`, with its constants left out."""
    noted = words(query)

    def alike(text: str) -> float:
        return 2 * (words(text) & noted).total() / (words(text).total() + noted.total())

    name, most = max(((each.name, alike(each.text)) for file in FILES for each in file.values()), key=itemgetter(1))
    return name if most >= ALIKE else "others"


@cache
def words(text: str) -> Counter[str]:
    """The words of a statement without its constants and comments, and how often it has each."""
    return Counter(WORD.findall(CONSTANT.sub("", text).lower()))


async def rounds(one: Callable[[], Awaitable[dict[str, float]]]) -> dict[str, float]:
    """The least of each cost, over some rounds after one that does not count."""
    await one()
    taken = [await one() for _ in range(ROUNDS)]
    return {cost: min(each.get(cost, 0.0) for each in taken) for cost in taken[0]}


async def started(stack: AsyncExitStack, lab: Lab, scene: Scene, target: str, port: int) -> Subject:
    """`taskflux run <target>`, ready to be counted."""
    name = target.rpartition(":")[2]
    out = lab.directory / f"counted-{name}"
    environment = {**scene.environment, **SETTINGS, "TASKFLUX_HTTP__PORT": str(port)}
    argv = Instructions.argv(out, "-P", "-c", UNHURRIED, "run", target)
    process = await stack.enter_async_context(lab.run(name, argv, environment))
    stack.callback(process.kill)  # its end would only take time
    connection = await asyncpg.connect(scene.postgres.dsn.get_secret_value())
    stack.push_async_callback(connection.close)
    await connection.execute(UNCOUNTED)
    await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    return Subject(Instructions(process, out), connection)


async def ready(process: Process, condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for `condition`.

    Raises:
        Trouble: the process has ended.
    """

    async def watched() -> bool:
        if not process.running:
            raise Trouble(f"{process.name} has ended: {gist(process.last_words())}")
        return await condition()

    await until(watched, what, pause=0.05)


async def worker(lab: Lab) -> Costs:
    """A backlog of no-op tasks, from the fetch to their outcomes."""
    lane = Lane.of_type(noop.type)
    async with AsyncExitStack() as stack:
        (scene,) = (await lab.scenes([noop], ())).values()
        backlogs = await stack.enter_async_context(open_backlogs(scene))
        await backlogs.connection.execute(UNCOUNTED)
        subject = await started(stack, lab, scene, f"benchmarks.handlers:{noop.name}", free_port())
        process = subject.counter.process

        async def publish(tasks: int = TASKS) -> None:
            await backlogs.clear()
            await backlogs.publish(lane, tasks)

        async def work_off() -> None:
            await ready(process, partial(backlogs.done, lane), f"{process.name} works its backlog off")

        await publish(1)
        await work_off()
        await subject.counter.begin()
        return {WORKER: await rounds(partial(subject.round, TASKS, publish, work_off))}


async def ingest(lab: Lab) -> Costs:
    """Submits of a crowd of clients, one task each, and batches; until the records are in Kafka."""
    port = free_port()
    async with AsyncExitStack() as stack:
        (scene,) = (await lab.scenes([noop], ())).values()
        subject = await started(stack, lab, scene, "ingest", port)
        process = subject.counter.process
        await ready(process, partial(answers, port), f"{process.name} listens on port {port}")
        clients = [await Connection.open(port) for _ in range(CROWD)]
        single, lines = (post(load.path, load.body, load.content_type) for load in (Load.single(0), Load.lines(0)))

        async def clear() -> None:
            await subject.connection.execute("TRUNCATE tasks, due")

        async def published() -> bool:
            return not await subject.connection.fetchval(f"SELECT EXISTS ({UNPUBLISHED})")

        async def submit(times: int, clients: Sequence[Connection], request: bytes) -> None:
            for _ in range(times):
                process.send(SIGSTOP)
                asking = [asyncio.ensure_future(client.ask(request)) for client in clients]
                await asyncio.sleep(0.01)  # all have sent, so that it reads all of them at once
                process.send(SIGCONT)
                if {*await asyncio.gather(*asking)} != {202}:
                    raise Trouble(f"{process.name} refused a task: {gist(process.last_words())}")
                await ready(process, published, f"{process.name} publishes what was submitted")

        await submit(1, clients[:1], single)
        await subject.counter.begin()
        crowds, batches = partial(submit, CROWDS, clients, single), partial(submit, BATCHES, clients[:1], lines)
        return {
            SINGLE: await rounds(partial(subject.round, CROWDS * CROWD, clear, crowds)),
            BATCH: await rounds(partial(subject.round, BATCHES * TASKS, clear, batches)),
        }


async def interpreter(lab: Lab) -> Costs:
    """An item of the reference."""
    program = str(ROOT / "benchmarks" / "floors" / "interpreter.py")
    first, second = [
        await asyncio.to_thread(callgrind.counted, ["-S", program, str(items)], lab.directory) for items in ITEMS
    ]
    return {REFERENCE: {INSTRUCTIONS: (second - first) / (ITEMS[1] - ITEMS[0])}}


async def measured() -> Costs:
    """All paths, with processes and servers of their own."""
    with tempfile.TemporaryDirectory(prefix="taskflux-guard-") as directory:
        builds = [Build("TaskFlux")]
        async with open_lab(Path(directory), builds, apache=False, settings=STATEMENTS) as lab:
            async with asyncio.TaskGroup() as group:
                parts = [group.create_task(measure(lab)) for measure in (interpreter, worker, ingest)]
            return {path: costs for part in parts for path, costs in part.result().items()}


async def guarded(document: Mapping[str, Costs], measure: Callable[[], Awaitable[Costs]] = measured) -> bool:
    """Measure, and tell what it costs; false when that is too much."""
    found = await measure()
    told = verdicts(found, document)
    for _ in range(ATTEMPTS - 1):
        if all(each.passed for each in told):
            break
        print(*told, "measured again:", sep="\n", flush=True)
        found = least(found, await measure())
        told = verdicts(found, document)
    print(*told, *advice(told), sep="\n", flush=True)
    return all(each.passed for each in told)


def main() -> int:
    """0 when no cost is too high, 75 when nothing can be measured here."""
    parser = argparse.ArgumentParser("python -m benchmarks.guard", description="What a task costs, beside guard.json.")
    parser.add_argument("--write", action="store_true", help="expect what is measured from now on")
    options = parser.parse_args()
    document: dict[str, Costs] = json.loads(EXPECTED.read_text())
    if why := callgrind.missing():
        print(why)
        return SKIP
    if not options.write and here() not in document:
        print(f"{EXPECTED.name} has nothing for {here()}: run make bench-guard ARGS=--write on it")
        return SKIP
    passed = True
    try:
        if options.write:
            found = asyncio.run(measured())
            EXPECTED.write_text(json.dumps(written(found, document), indent=2) + "\n")
            print(EXPECTED.read_text(), end="")
        else:
            passed = asyncio.run(guarded(document))
    except* (Trouble, TimeoutError) as troubles:
        print(*(f"benchmarks.guard: {trouble}" for trouble in troubles.exceptions), sep="\n", file=sys.stderr)
        passed = False
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
