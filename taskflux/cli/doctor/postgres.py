"""PostgreSQL: version, schema, clock, connections, vacuum, partitions, a pooler; and what runs over it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.cli.shown import counted
from taskflux.store.errors import SchemaTooOld, StoreError
from taskflux.store.settings import PostgresSettings, keys_in
from taskflux.store.upkeep import Checkup, Pooling, pooling
from taskflux.worker.settings import Settings

POSTGRES = Subject("PostgreSQL")
WORK = Subject("what runs")

LEAST_VERSION: Final = 140000
WEEKS_AHEAD: Final = 2
LONG_TRANSACTION: Final = 3600.0
CLOCK_WARNING: Final = 5.0
SERVICE_POOL: Final = 4
HANDLER_POOL: Final = 2
SERVICES: Final = frozenset({"ingest", "relay", "notify"})
"""Deployments whose pool is the larger one."""
GIB: Final = 2**30
BLOCK: Final = 8192
USUAL_FILL: Final = 0.6
"""Share of a block that a whole page takes in the WAL, without the hole in it."""
SOME_CHECKPOINTS: Final = 10
MOST_PAGES: Final = 0.5
SOME_BLOCKS: Final = 10_000_000
MOST_MISSED: Final = 0.1
LATE: Final = 60.0
"""Seconds by which a relay that keeps up is never late, beside the grace."""


async def examine(checkup: Checkup, settings: Settings, types: Sequence[str]) -> list[Finding]:
    """Raises StoreError where PostgreSQL cannot be reached."""
    server = await checkup.server()
    findings = list(judge_server(server))
    findings += judge_costs(server, await checkup.activity(server["version"]))
    findings += judge_clock(*await checkup.clock_difference())
    findings += judge_connections(server, *await checkup.connections(), settings, types)
    findings.append(judge_transaction(await checkup.oldest_transaction()))
    try:
        findings.append(judge_schema(await checkup.missing_migrations()))
        findings.append(judge_partitions(await checkup.missing_partitions(WEEKS_AHEAD)))
        findings.append(judge_strays(await checkup.strays()))
        findings.append(
            judge_indexes(complete=await checkup.indexes_complete(keys_in(settings.postgres.metadata_keys)))
        )
    except SchemaTooOld:
        findings.append(POSTGRES.problem("schema", "there is none yet", "run `taskflux migrate`"))
    return findings


def unreachable(error: StoreError) -> Finding:
    """The one finding where there is nothing more to ask."""
    return POSTGRES.problem(
        "reachable",
        str(error),
        "check TASKFLUX_POSTGRES__DSN, the server and the network between; until then ingest answers 503",
    )


def judge_server(server: Mapping[str, Any]) -> Iterator[Finding]:
    """Version and settings."""
    if server["version"] < LEAST_VERSION:
        yield POSTGRES.problem("version", server["version_text"], "PostgreSQL 14 or newer is needed")
    else:
        yield POSTGRES.ok("version", server["version_text"])
    if server["read_only"]:
        yield POSTGRES.problem(
            "writable",
            "this server is a standby, or read-only",
            "name the primary in TASKFLUX_POSTGRES__DSN (several hosts with target_session_attrs=read-write)",
        )
    else:
        yield POSTGRES.ok("writable", "it is a primary")
    if server["autovacuum"] and server["track_counts"]:
        yield POSTGRES.ok("autovacuum", "it is on")
    else:
        yield POSTGRES.problem(
            "autovacuum",
            "it is off: every task updates its rows several times, and nothing cleans up behind them",
            "set autovacuum = on and track_counts = on",
        )
    if not server["fsync"]:
        yield POSTGRES.problem(
            "durability", "fsync is off: a crash may destroy the database", "set fsync = on; 202 means durable"
        )
    elif server["synchronous_commit"] == "off":
        yield POSTGRES.warning(
            "durability",
            "synchronous_commit is off: a crash may lose tasks that were answered with 202",
            "set synchronous_commit = on for TaskFlux's role or database",
        )
    else:
        yield POSTGRES.ok("durability", f"synchronous_commit is {server['synchronous_commit']}")


def judge_costs(server: Mapping[str, Any], since: Mapping[str, Any]) -> Iterator[Finding]:
    """Settings that make each task cost more, by what the server has done `since` its statistics were reset."""
    checkpoints, size = since["timed"] + since["requested"], server["max_wal_size"] / GIB
    each = (since["seconds"] or 0.0) / max(checkpoints, 1)
    told = (
        f"one every {each:,.0f} s; {since['requested']} of {checkpoints} came before their time:"
        f" max_wal_size ({size:.3g} GB) was reached"
    )
    if since["requested"] >= SOME_CHECKPOINTS and since["requested"] > since["timed"]:
        rate = since["wal"] / max(since["wal_seconds"] or 0.0, 1.0)
        enough = math.ceil(max(2 * size, 3 * rate * server["checkpoint_timeout"] / GIB))
        yield POSTGRES.warning(
            "checkpoints",
            f"{told}. After each, the first change of a page writes the whole page to the WAL",
            f"set max_wal_size = {enough}GB, and checkpoint_timeout = 15min",
        )
    else:
        yield POSTGRES.ok("checkpoints", told)
    pages = min(since["pages"] * BLOCK * USUAL_FILL / max(since["wal"], 1.0), 0.99)
    if pages > MOST_PAGES and since["wal"] > GIB and server["wal_compression"] == "off":
        yield POSTGRES.warning(
            "whole pages",
            f"about {pages:.0%} of {since['wal'] / GIB:,.0f} GB of WAL are whole pages; wal_compression is off",
            "set wal_compression = lz4 (before PostgreSQL 15: on), and see to fewer checkpoints",
        )
    looked = since["read"] + since["hit"]
    if since["read"] > MOST_MISSED * looked and looked > SOME_BLOCKS:
        yield POSTGRES.warning(
            "cache",
            f"{since['read'] / looked:.0%} of the blocks were not in shared_buffers ({server['shared_buffers']})",
            "raise shared_buffers, usually to a quarter of the memory",
        )
    if server["log_statement"] in ("mod", "all") or server["log_min_duration_statement"] == "0":
        yield POSTGRES.warning(
            "statement log",
            "every statement is logged: that takes as long as many of them, and the log holds payloads",
            "set log_statement = none, and log_min_duration_statement = 1s for our role or database",
        )
    if server["commit_delay"]:
        yield POSTGRES.warning(
            "commit delay",
            f"commit_delay is {server['commit_delay']} µs: statements that have gathered a batch wait again",
            "set commit_delay = 0: TaskFlux groups commits by itself",
        )


def judge_indexes(*, complete: bool) -> Finding:
    """Lists by type, and by declared metadata, need their indexes on every partition."""
    if complete:
        return POSTGRES.ok("indexes", "every partition has them")
    return POSTGRES.warning(
        "indexes",
        "some are missing: lists by type or by a declared metadata key read the tasks themselves",
        "run `taskflux migrate` with the same TASKFLUX_POSTGRES__METADATA_KEYS",
    )


def judge_clock(ahead: float, error: float) -> Iterator[Finding]:
    """All stored times are PostgreSQL's: a difference shows only where a time is given by its clock on the wall."""
    told = f"{abs(ahead):.2f} s {'ahead of' if ahead >= 0 else 'behind'} this machine's (± {error:.2f} s)"
    if abs(ahead) - error > CLOCK_WARNING:
        yield POSTGRES.warning(
            "clock", told, "let both keep time by NTP: scheduleAt and expiresAt mean PostgreSQL's clock"
        )
    else:
        yield POSTGRES.ok("clock", told)


def judge_connections(
    server: Mapping[str, Any], ours: Mapping[str, int], others: int, settings: Settings, types: Sequence[str]
) -> Iterator[Finding]:
    """`max_connections` against the pools of what runs now, and of every handler at its full scale."""
    allowed = server["max_connections"] - server["reserved"]
    running = sum(pool_of(label.partition("@")[0], settings) for label in ours)
    # More pods of a type than its topic has partitions would stand idle: KEDA starts none.
    full = max(running, _full_scale(ours, settings, types))
    told = (
        f"{len(ours)} processes of ours may open {running}, others hold {others}; {allowed} are allowed. At full scale"
        f" ({settings.kafka.partitions} pods for each of {len(types)} types) ours could open {full}"
    )
    do = (
        "raise max_connections, put PgBouncer before it (TASKFLUX_POSTGRES__POOLER=true), lower"
        " TASKFLUX_POSTGRES__POOL_SIZE, or cap the handlers' replicas"
    )
    if running + others > allowed:
        yield POSTGRES.problem("connections", told, do)
    elif full + others > allowed and not settings.postgres.pooler:
        yield POSTGRES.warning("connections", told, do)
    else:
        yield POSTGRES.ok("connections", told)


def pool_of(deployment: str, settings: Settings) -> int:
    """Connections that one process of a deployment opens at most."""
    return settings.postgres.pool_size or (SERVICE_POOL if deployment in SERVICES else HANDLER_POOL)


def _full_scale(ours: Mapping[str, int], settings: Settings, types: Sequence[str]) -> int:
    services = [label for label in ours if label.partition("@")[0] in SERVICES or label.startswith("dlq-sink@")]
    steady = sum(pool_of(label.partition("@")[0], settings) for label in services)
    return steady + len(types) * settings.kafka.partitions * pool_of("", settings)


def judge_transaction(seconds: float) -> Finding:
    """A transaction that stays open keeps vacuum from everything that was changed since."""
    if seconds > LONG_TRANSACTION:
        return POSTGRES.warning(
            "open transactions",
            f"one has been open for {seconds / 3600:.1f} h, and vacuum cleans nothing younger",
            "find it in pg_stat_activity (xact_start) and end it; set idle_in_transaction_session_timeout",
        )
    return POSTGRES.ok("open transactions", f"the oldest has lasted {seconds:.0f} s")


def judge_schema(missing: Sequence[str]) -> Finding:
    """Whether every migration of this program was applied."""
    if missing:
        return POSTGRES.problem("schema", f"not applied yet: {', '.join(missing)}", "run `taskflux migrate`")
    return POSTGRES.ok("schema", "it is this version's, or newer")


def judge_partitions(missing: Sequence[str]) -> Finding:
    """The relay makes them ahead; where it cannot, tasks fall into the default partition."""
    if missing:
        return POSTGRES.problem(
            "partitions",
            f"there is none for {', '.join(missing)}",
            "see that a relay runs and that its role may create tables in this schema (it owns `tasks`)",
        )
    return POSTGRES.ok("partitions", f"those of this week and the next {WEEKS_AHEAD} are there")


def judge_strays(strays: bool) -> Finding:
    """Tasks in the default partition are found and run, but no partition can be made over their weeks."""
    if strays:
        return POSTGRES.warning(
            "default partition",
            "tasks stand in it: for their week no partition can be made any more",
            "wait until they have ended and prune them, or move them by hand in a quiet hour",
        )
    return POSTGRES.ok("default partition", "it is empty")


async def examine_pooler(settings: PostgresSettings) -> list[Finding]:
    """Ask over two connections of its own."""
    try:
        return [judge_pooler(await pooling(settings), settings.pooler)]
    except StoreError as error:
        return [POSTGRES.warning("pooler", f"it could not be found out: {error}", "run the doctor again")]


def judge_pooler(found: Pooling, told_so: bool) -> Finding:
    """What stands there against `TASKFLUX_POSTGRES__POOLER`."""
    if found.between and not told_so:
        what = "one in transaction mode" if found.transaction else "one"
        make = POSTGRES.problem if found.transaction else POSTGRES.warning
        return make(
            "pooler",
            f"there is {what}, and TASKFLUX_POSTGRES__POOLER is false: prepared statements may meet another connection",
            "set TASKFLUX_POSTGRES__POOLER=true, and TASKFLUX_POSTGRES__MIGRATE_DSN to PostgreSQL's own address",
        )
    if told_so and not found.between:
        return POSTGRES.warning(
            "pooler",
            "TASKFLUX_POSTGRES__POOLER is true, and none stands between: every statement is prepared anew",
            "set it to false, unless the connections of other processes do go through one",
        )
    return POSTGRES.ok("pooler", "as the settings say: " + ("one stands between" if found.between else "none"))


async def examine_work(checkup: Checkup, settings: Settings) -> list[Finding]:
    """The relay and its leader, the workers' beats, circuits, what is overdue. Raises StoreError."""
    findings = [judge_leader(await checkup.leader(), settings.relay.leader_seconds)]
    findings += judge_workers(await checkup.workers(settings.worker.lease_seconds))
    findings += judge_circuits(await checkup.open_circuits())
    findings += judge_overdue(await checkup.overdue(), settings.relay.grace)
    return findings


def judge_leader(left: float | None, seconds: float) -> Finding:
    """A relay that stops resigns; one that was killed leaves a row that has expired.

    A row that goes on for longer than the `seconds` of a leadership is from before PostgreSQL's clock was set back: its
    leader would have renewed it.
    """
    if left is None or left < 0 or left > 2 * seconds:
        if left is None:
            since = "there is no leader"
        elif left < 0:
            since = f"the leader has been silent for {-left:.0f} s beyond its time"
        else:
            since = "the leader has been silent since PostgreSQL's clock was set back"
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
            "fix the credentials, the balance or the template; it closes by itself afterwards"
            if misconfigured
            else "wait, or see to the provider: it is probed, and closes by itself when it serves again"
        )
        told = f"open for {minutes:.0f} min: {circuit['error_class']}: {circuit['reason']}"
        make = WORK.problem if misconfigured else WORK.warning
        yield make(f"circuit {circuit['provider']}", told, do)
    if not found:
        yield WORK.ok("circuits", "all closed")


def judge_overdue(found: Mapping[bool, tuple[float, int]], grace: float) -> Iterator[Finding]:
    """Tasks that are due and not published, except those that an open circuit holds back."""
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
