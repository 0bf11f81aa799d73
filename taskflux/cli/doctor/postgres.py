"""PostgreSQL: version, schema, clock, connections, vacuum, partitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.store.checkup import Checkup
from taskflux.store.errors import SchemaTooOld, StoreError
from taskflux.worker.settings import Settings

POSTGRES = Subject("PostgreSQL")

LEAST_VERSION: Final = 140000
WEEKS_AHEAD: Final = 2
LONG_TRANSACTION: Final = 3600.0
CLOCK_WARNING: Final = 5.0
SERVICE_POOL: Final = 4
HANDLER_POOL: Final = 2
SERVICES: Final = frozenset({"ingest", "relay", "notify"})
"""Deployments whose pool is the larger one."""


async def examine(checkup: Checkup, settings: Settings, types: Sequence[str]) -> list[Finding]:
    """Raises StoreError where PostgreSQL cannot be reached."""
    findings = list(judge_server(await checkup.server()))
    findings += judge_clock(*await checkup.clock_difference())
    findings += judge_connections(await checkup.server(), *await checkup.connections(), settings, types)
    findings.append(judge_transaction(await checkup.oldest_transaction()))
    try:
        findings.append(judge_schema(await checkup.missing_migrations()))
        findings.append(judge_partitions(await checkup.missing_partitions(WEEKS_AHEAD)))
        findings.append(judge_strays(await checkup.strays()))
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
