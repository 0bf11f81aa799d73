"""Cold start: what passes between the start of a process and the first waiting message handled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Final

from benchmarks.backlogs import Backlogs, Lane, open_backlogs
from benchmarks.lab import Lab, until
from benchmarks.peers.contest import PEERS, Contest, Peer, peers_of
from benchmarks.proc import cpu_seconds, family_cpu_seconds
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Contestant, Effort, take_turns
from taskflux.handlers.process_simulated import process_simulated
from taskflux.local.processes import Process

FLOOR: Final = "aiokafka + asyncpg"
DELAY: Final = 3000
"""Milliseconds: Kafka's own default."""
COLUMNS: Final = (
    Column("exec → handled s", 2),
    Column("exec → consumer started s", 2),
    Column("CPU s", 2),
)
Start = Callable[[], AbstractAsyncContextManager[Process]]


async def cold_start(lab: Lab, effort: Effort) -> Table:
    """`taskflux run process-simulated` next to a bare consumer."""
    return await _measured(lab, effort, "cold-start", "cold start, one message waiting")


async def cold_start_delayed(lab: Lab, effort: Effort) -> Table:
    """The same on a broker that lets the first member of a group wait, for as long as Kafka does by default."""
    if not lab.apache:
        raise RuntimeError("it needs Apache Kafka")
    from tests.kafka.broker import KafkaBroker

    async with KafkaBroker(lab.directory / "kafka-delayed", rebalance_delay=DELAY) as broker:
        kafka = lab.kafka.model_copy(update={"bootstrap_servers": broker.bootstrap_servers})
        delayed = replace(lab, broker=broker, kafka=kafka, contest=None)
        title = f"cold start, one message waiting, group.initial.rebalance.delay.ms={DELAY}"
        return await _measured(delayed, effort, "cold-start-delayed", title)


async def _measured(lab: Lab, effort: Effort, key: str, title: str) -> Table:
    async with AsyncExitStack() as stack:
        scenes = await lab.scenes([process_simulated], ["cold"])
        turns: dict[str, Contestant] = {}
        for name, scene in scenes.items():
            backlogs = await stack.enter_async_context(open_backlogs(scene))
            if not turns:
                floor = partial(lab.floor, "consumer", scene, "batched", scene.topic("cold"))
                turns[FLOOR] = partial(_start, backlogs, Lane.of_floor("cold"), floor)
            worker = partial(lab.taskflux, "process-simulated", scene)
            turns[f"{name} process-simulated"] = partial(_start, backlogs, Lane.of_type("simulated"), worker)
            await lab.compile(scene)
        if lab.contest is not None:
            turns |= {name: partial(_peer_starts, lab.contest, peer) for name, peer in PEERS.items()}
        samples = await take_turns(turns, effort.few)
    notes = ["started: it says so itself; peers: until the handler reports"]
    notes += [] if lab.apache else ["the embedded broker answers the first join of a group after 5 s"]
    return Table(key, title, COLUMNS, FLOOR, samples, notes, peers_of(lab))


async def _start(backlogs: Backlogs, lane: Lane, start: Start) -> Sample:
    await backlogs.clear()
    await backlogs.publish(lane, 1)
    began = time.time()
    async with start() as process:
        await until(partial(_says_started, process), "it starts", pause=0.003)
        started = time.time()
        await until(partial(backlogs.done, lane), "the message is handled", pause=0.02)
        cpu = cpu_seconds(process.pid)
    return {
        "exec → handled s": await backlogs.last_outcome(lane) - began,
        "exec → consumer started s": started - began,
        "CPU s": cpu,
    }


async def _peer_starts(contest: Contest, peer: Peer) -> Sample:
    await contest.clear(peer)
    await contest.program(peer, "publish", "stamp", "1")
    began = time.time()
    async with contest.worker(peer, "stamp") as work:
        await until(partial(_reported, contest), "the message is handled", pause=0.003)
        handled = min(contest.stamps.started.values())
        cpu = family_cpu_seconds(work.process.pid)
    return {"exec → handled s": handled / 1e9 - began, "exec → consumer started s": math.nan, "CPU s": cpu}


async def _reported(contest: Contest) -> bool:
    return bool(contest.stamps.started)


async def _says_started(process: Process) -> bool:
    return "started" in process.last_words()
