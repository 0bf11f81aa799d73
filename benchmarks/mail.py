"""Mails a second to a real Postfix on this machine, over as many sessions each, in plaintext and with TLS and AUTH.

`smtp-source`, Postfix's own load generator, supports neither TLS nor AUTH: with those, a bare sender
is measured instead.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.backlog import Consumer, worked_off
from benchmarks.backlogs import Lane, open_backlogs
from benchmarks.cpu import OWN
from benchmarks.lab import Lab, until
from benchmarks.payload import PAYLOAD
from benchmarks.postfix import DOMAIN, PASSWORD, USER, Postfix, program
from benchmarks.proc import family_cpu_seconds
from benchmarks.report import Column, Sample, Table
from benchmarks.rounds import Contestant, Effort, take_turns
from taskflux.handlers.process_email import process_email
from taskflux.local.console import Trouble

SESSIONS: Final = 10
MAILS: Final = 1000
WARM_UP: Final = 30
COLUMNS: Final = (Column("mails/s", spread=True), Column("CPU µs/mail"), Column("Postfix µs/mail"))
FLOOR: Final = "bare sender, STARTTLS and AUTH"
TEXT: Final = str(PAYLOAD["text"])
EMAIL: Final = {"to": PAYLOAD["to"], "subject": PAYLOAD["subject"], "body": TEXT}


async def mail(lab: Lab, effort: Effort) -> Table:
    """process-email next to smtp-source and a bare sender."""
    mails = effort.some(MAILS)
    async with AsyncExitStack() as stack:
        postfix = await stack.enter_async_context(Postfix(lab.directory / "postfix"))
        secured = (str(postfix.ca_file), f"{USER}@{DOMAIN}", PASSWORD)
        turns: dict[str, Contestant] = {
            "smtp-source, plaintext": partial(_smtp_source, lab, postfix, mails),
            "bare sender, plaintext": partial(_bare, lab, postfix, mails, postfix.plain),
            FLOOR: partial(_bare, lab, postfix, mails, postfix.port, *secured),
        }
        settings = {
            "HOST": "127.0.0.1",
            "SENDER": f"bench@{DOMAIN}",
            "HOSTNAME": "bench.example.org",
            "CONNECTIONS": str(SESSIONS),
        }
        plain = settings | {"TLS": "none", "PORT": str(postfix.plain)}
        ca_file, username, password = secured
        full = settings | {
            "PORT": str(postfix.port),
            "CA_FILE": ca_file,
            "USERNAME": username,
            "PASSWORD": password,
        }
        for build in (each.name for each in lab.builds):
            for how, said in (("plaintext", plain), ("STARTTLS and AUTH", full)):
                scene = (await lab.scenes([process_email], ()))[build]
                backlogs = await stack.enter_async_context(open_backlogs(scene, payload=EMAIL))
                further = {f"TASKFLUX_SMTP__{name}": value for name, value in said.items()}
                process = await stack.enter_async_context(lab.taskflux("process-email", scene, further=further))
                consumer = Consumer(lab, backlogs, process, Lane.of_type(process_email.type), mails)
                await backlogs.publish(consumer.lane, WARM_UP)
                await until(partial(backlogs.done, consumer.lane), "the first mails are sent")
                turns[f"{build} process-email, {how}"] = partial(_by_worker, postfix, consumer)
        samples = await take_turns(turns, effort.rounds)
    notes = [
        f"{SESSIONS} sessions, kept open; mails of {len(TEXT)} characters; Postfix discards what it has queued",
        "smtp-source can do neither TLS nor AUTH",
    ]
    return Table("mail", "mails over SMTP to a real Postfix on loopback", COLUMNS, FLOOR, samples, notes)


async def _smtp_source(lab: Lab, postfix: Postfix, mails: int) -> Sample:
    sizes = ["-s", str(SESSIONS), "-m", str(mails), "-l", str(len(TEXT)), "-d"]
    addresses = ["-f", f"bench@{DOMAIN}", "-t", str(PAYLOAD["to"])]
    argv: list[str | Path] = [program("smtp-source"), *sizes, *addresses, f"127.0.0.1:{postfix.plain}"]
    began, before = time.perf_counter(), family_cpu_seconds(postfix.pid)
    own, _ = await _ended(lab, "smtp-source", argv)
    return _figures(mails, time.perf_counter() - began, own, family_cpu_seconds(postfix.pid) - before)


async def _bare(lab: Lab, postfix: Postfix, mails: int, port: int, *secured: str) -> Sample:
    numbers = map(str, (port, SESSIONS, mails))
    argv: list[str | Path] = [sys.executable, "-m", "benchmarks.floors.mail", *numbers, *secured]
    before = family_cpu_seconds(postfix.pid)
    own, said = await _ended(lab, "floor-mail", argv)
    return _figures(mails, float(said), own, family_cpu_seconds(postfix.pid) - before)


async def _by_worker(postfix: Postfix, consumer: Consumer) -> Sample:
    before = family_cpu_seconds(postfix.pid)
    sample = await worked_off(consumer)
    spent = (family_cpu_seconds(postfix.pid) - before) / consumer.tasks * 1e6
    return {"mails/s": sample["tasks/s"], "CPU µs/mail": sample[OWN], "Postfix µs/mail": spent}


async def _ended(lab: Lab, name: str, argv: Sequence[str | Path]) -> tuple[float, str]:
    """Run a program to its end: its CPU, and what it printed.

    Raises:
        Trouble: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    async with lab.run(name, argv, {}) as process:
        if await process.wait():
            raise Trouble(f"{name} failed: {process.last_words()}")
        after, said = resource.getrusage(resource.RUSAGE_CHILDREN), process.last_words()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, said


def _figures(mails: int, seconds: float, own: float, servers: float) -> Sample:
    return {"mails/s": mails / seconds, "CPU µs/mail": own / mails * 1e6, "Postfix µs/mail": servers / mails * 1e6}
