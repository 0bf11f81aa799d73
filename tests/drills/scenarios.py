"""The drills: a burst, and in the middle of it something dies."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from taskflux.local.ports import free_port
from taskflux.local.supervisor import Inbox
from tests.drills import burst
from tests.drills.dev import Dev
from tests.drills.outcome import Ledger, Outcome, received
from tests.kafka.broker import KafkaBroker

MAILS_IN_FLIGHT = 20
SMS_IN_FLIGHT = 64
"""At most, in one process: twice its handler's slots are claimed, of which half may be in mid-call."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a drill may cost: messages that are sent twice, tasks that are held for a person."""

    repeats: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens in the middle of the burst; `strike` returns once the damage is done."""

    name: str
    strike: Callable[[Dev], Awaitable[None]]
    allowed: Allowed = Allowed()


def scenarios(*, apache: bool = False) -> list[Scenario]:
    """All but the outage of the SMTP server, which needs a separate server. `apache`: Kafka is no part of `dev`."""
    in_mid_call = {
        "process-email": Allowed(repeats=MAILS_IN_FLIGHT),
        "process-sms": Allowed(held=SMS_IN_FLIGHT),
        # It has stored the message, and dies before it answers.
        "inbox": Allowed(repeats=MAILS_IN_FLIGHT, held=SMS_IN_FLIGHT),
    }
    parts = ("ingest", "relay", "process-email", "process-sms", "process-simulated", "dlq-sink")
    servers = ("PostgreSQL", "Valkey", "inbox") if apache else ("PostgreSQL", "Kafka (Tansu)", "Valkey", "inbox")
    # The inbox dies a moment before the handlers: these claim others in place of what they hold then.
    everything = Allowed(repeats=2 * MAILS_IN_FLIGHT, held=2 * SMS_IN_FLIGHT)
    return [
        Scenario("nothing dies", _nothing),
        *(Scenario(f"kill -9 {name}", _killing(name), in_mid_call.get(name, Allowed())) for name in parts + servers),
        *([Scenario("kill -9 Apache Kafka", _kill_kafka)] if apache else []),
        Scenario("kill -9 the whole tree", _kill_all, everything),
    ]


async def _nothing(dev: Dev) -> None:
    pass


def _killing(name: str) -> Callable[[Dev], Awaitable[None]]:
    async def strike(dev: Dev) -> None:
        dev.kill(name)

    return strike


async def _kill_kafka(dev: Dev) -> None:
    assert dev.broker is not None
    dev.broker.kill()
    await dev.broker.start()


async def _kill_all(dev: Dev) -> None:
    dev.kill_all()
    if dev.broker is not None:
        await _kill_kafka(dev)
    await dev.start()


async def run(scenario: Scenario, directory: Path, number: int, seed: int, *, apache: bool = False) -> Outcome:
    """Run one drill on a fresh data directory."""
    async with _running(_dev(directory, apache)) as dev:
        tasks = burst.make_tasks(number, seed)
        ledger, began = Ledger(dev.dsn), time.monotonic()
        sending = asyncio.create_task(burst.send(dev.url, tasks))
        point = random.Random(f"{seed} {scenario.name}").uniform(0.1, 0.6)
        await ledger.until_succeeded(int(number * point), _patience(number))
        await scenario.strike(dev)
        accepted = await sending
        states = await ledger.until_ended(number, _patience(number))
        seconds = time.monotonic() - began
        outcome = await _look(dev.inbox_url, ledger, states, number, seconds)
        if missing := await ledger.missing(accepted):
            outcome.faults.append(f"{missing} accepted tasks have no row")
        _judge(outcome, scenario.allowed, burst.count(tasks))
        return outcome


async def run_smtp_outage(directory: Path, number: int, seed: int, away: float, *, apache: bool = False) -> Outcome:
    """A separate SMTP server is unreachable for `away` seconds in the middle of the burst."""
    inbox = Inbox(
        smtp_port=free_port(),
        http_port=free_port(),
        file=directory.with_name("smtp.sqlite"),
        log=directory.with_name("smtp.log"),
        environment={},
    )
    environment = {
        "TASKFLUX_SMTP__HOST": "127.0.0.1",
        "TASKFLUX_SMTP__PORT": str(inbox.smtp_port),
        "TASKFLUX_SMTP__TLS": "none",
        "TASKFLUX_SMTP__SENDER": "drill@example.org",
    }
    async with _running(_dev(directory, apache, environment)) as dev:
        await inbox.start()
        tasks = burst.make_tasks(number, seed)
        ledger, began = Ledger(dev.dsn), time.monotonic()
        await burst.send(dev.url, tasks)
        await ledger.until_succeeded(number // 4, _patience(number))
        await inbox.stop()
        print(f"  the SMTP server is unreachable for {away:g} s", file=sys.stderr)
        await asyncio.sleep(away)
        dead = await ledger.dead_letters()
        await inbox.start()
        states = await ledger.until_ended(number, _patience(number))
        seconds = time.monotonic() - began
        outcome = await _look(inbox.url, ledger, states, number, seconds, sms_url=dev.inbox_url)
        await inbox.stop()
        retried = await ledger.retried(["email"])
        if retried > MAILS_IN_FLIGHT or dead:
            outcome.faults.append(
                f"{retried} mails took more than one attempt, {dead} dead letters while it was unreachable"
            )
        _judge(outcome, Allowed(repeats=MAILS_IN_FLIGHT), burst.count(tasks))
        return outcome


def _patience(number: int) -> float:
    return 120.0 + number / 50


def _dev(directory: Path, apache: bool, environment: Mapping[str, str] = MappingProxyType({})) -> Dev:
    return Dev(directory, environment, KafkaBroker(directory.with_name("kafka")) if apache else None)


@asynccontextmanager
async def _running(dev: Dev) -> AsyncIterator[Dev]:
    if dev.broker is not None:
        await dev.broker.start()
    try:
        await dev.start()
        yield dev
        await dev.stop()
    except BaseException:
        dev.kill_all()
        raise
    finally:
        if dev.broker is not None:
            await dev.broker.stop()


async def _look(
    inbox_url: str, ledger: Ledger, states: dict[str, int], number: int, seconds: float, sms_url: str | None = None
) -> Outcome:
    counts = await received(inbox_url)
    sms = (await received(sms_url))["sms"] if sms_url else counts["sms"]
    return Outcome(
        number,
        seconds,
        Counter(states),
        await ledger.retried(["email", "sms"]),
        await ledger.dead_letters(),
        counts["email"],
        sms,
    )


def _judge(outcome: Outcome, allowed: Allowed, sent: dict[str, int]) -> None:
    """Record what should not have happened."""
    faults, held = outcome.faults, outcome.states["uncertain"]
    if outcome.lost:
        faults.append(f"{outcome.lost} lost: {dict(outcome.states)}")
    if held > allowed.held:
        faults.append(f"{held} held, {allowed.held} at most were in mid-call")
    if outcome.mails["repeated"] > allowed.repeats:
        faults.append(f"{outcome.mails['repeated']} mails twice, {allowed.repeats} at most were in mid-call")
    if outcome.mails["distinct"] != sent["email"]:
        faults.append(f"{outcome.mails['distinct']} of {sent['email']} mails came")
    if outcome.sms["repeated"] or not sent["sms"] - held <= outcome.sms["distinct"] <= sent["sms"]:
        faults.append(f"{outcome.sms['received']} SMS came, {outcome.sms['distinct']} different, of {sent['sms']}")
    if outcome.dead_letters:
        faults.append(f"{outcome.dead_letters} dead letters")
