"""What runs: the relay and its leader, the workers' beats, circuits, and what is overdue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.cli.shown import counted
from taskflux.store.checkup import Checkup
from taskflux.worker.settings import Settings

WORK = Subject("what runs")

LATE: Final = 60.0
"""Seconds by which a relay that keeps up is never late, beside the grace."""


async def examine(checkup: Checkup, settings: Settings) -> list[Finding]:
    """Raises StoreError where PostgreSQL went away meanwhile."""
    findings = [judge_leader(await checkup.leader())]
    findings += judge_workers(await checkup.workers(settings.worker.lease_seconds))
    findings += judge_circuits(await checkup.open_circuits())
    findings += judge_overdue(await checkup.overdue(), settings.relay.grace)
    return findings


def judge_leader(left: float | None) -> Finding:
    """A relay that stops resigns; one that was killed leaves a row that has run out."""
    if left is None or left < 0:
        since = (
            "there is no leader" if left is None else f"the leader has been silent for {-left:.0f} s beyond its time"
        )
        return WORK.problem(
            "relay",
            since,
            "run `taskflux run relay`, one at least: without it nothing is retried, delayed or looked after",
        )
    return WORK.ok("relay", "one leads")


def judge_workers(found: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    """No worker at all is fine (handlers scale to zero); a silent one that still holds tasks is not."""
    lost = {handler: silent for handler, (_, silent) in found.items() if silent}
    if lost:
        told = ", ".join(f"{handler} {silent}" for handler, silent in lost.items())
        yield WORK.problem(
            "workers' beats",
            f"silent for three leases and still holding tasks: {told}",
            "see that a relay leads (it frees them), and that TASKFLUX_WORKER__LEASE_SECONDS is everywhere the same",
        )
    else:
        told = ", ".join(f"{handler} {alive}" for handler, (alive, _) in found.items() if alive) or "none at the moment"
        yield WORK.ok("workers' beats", f"alive: {told}")


def judge_circuits(found: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """An open circuit holds back all tasks of its provider."""
    for circuit in found:
        minutes = (circuit["seconds"] or 0) / 60
        misconfigured = circuit["error_class"] == "Misconfigured"
        do = (
            "a person has to mend it: credentials, balance or template; it closes by itself then"
            if misconfigured
            else "wait, or see to the provider: it is probed, and closes by itself when it serves again"
        )
        told = f"open for {minutes:.0f} min: {circuit['error_class']}: {circuit['reason']}"
        make = WORK.problem if misconfigured else WORK.warning
        yield make(f"circuit {circuit['provider']}", told, do)
    if not found:
        yield WORK.ok("circuits", "all closed")


def judge_overdue(found: Mapping[bool, tuple[float, int]], grace: float) -> Iterator[Finding]:
    """What is due and not published, apart from what an open circuit holds back."""
    for dead, check in ((False, "due tasks"), (True, "due dead letters")):
        seconds, number = found.get(dead, (0.0, 0))
        if seconds > grace + LATE:
            noun = "dead letter" if dead else "task"
            yield WORK.warning(
                check,
                f"{counted(number, noun)} should have been published, the oldest {seconds:.0f} s ago",
                "see that a relay runs and reaches Kafka; behind a flood (TASKFLUX_RELAY__MAX_UNCLAIMED) this is meant:"
                " let the handlers scale",
            )
        else:
            yield WORK.ok(check, "none is late")
