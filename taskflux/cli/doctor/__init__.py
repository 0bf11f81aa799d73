"""`taskflux doctor`: every trap that a deployment can fall into, each with what to do about it.

One module for each subject: it asks, and a pure function judges the answers. Run it with the environment of the
deployment that it shall look at: settings differ, so it sees what that one would.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

import click

from taskflux.cli.doctor import dependencies, kafka, postgres
from taskflux.cli.doctor.findings import Finding, Level, Subject, document, print_findings
from taskflux.cli.program import FAILED, OK, join_dev
from taskflux.cli.shown import json_option, print_json
from taskflux.store.database import Database
from taskflux.store.errors import StoreError
from taskflux.store.tasks import TaskTypes
from taskflux.store.upkeep import Checkup
from taskflux.stream.topics import is_task_type
from taskflux.worker.loading import built_in_handlers
from taskflux.worker.settings import Settings, WrongSettings, load, load_provider

SETTINGS = Subject("settings")


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Show what is in order, too, one line each.")
@json_option
def doctor(show_all: bool, as_json: bool) -> None:
    """Check the settings, PostgreSQL, Kafka, Redis, the providers, and what runs.

    Ends with 1 if it found a problem; warnings do not count. It changes nothing and sends nothing.
    """
    # What a library says beside it would stand between the findings, which say it better.
    logging.getLogger().addHandler(logging.NullHandler())
    join_dev()
    findings = asyncio.run(examine())
    if as_json:
        print_json(document(findings))
    else:
        print_findings(findings, show_all=show_all)
    sys.exit(FAILED if any(finding.level is Level.PROBLEM for finding in findings) else OK)


async def examine() -> list[Finding]:
    """Every finding, subject by subject: who cannot be reached is told once, and asked nothing more."""
    settings, findings = _examine_settings()
    if settings is None:
        return findings
    types: Sequence[str] | None = None
    if settings.postgres.dsn.get_secret_value():
        store, types = await _examine_store(settings)
        findings += store
    if settings.kafka.bootstrap_servers:
        findings += await kafka.examine(settings, types)
    findings += await dependencies.examine_redis(settings.redis)
    findings += await dependencies.examine_smtp()
    findings += await dependencies.examine_msg91()
    findings += await dependencies.examine_notify(settings.notify)
    findings += await dependencies.examine_scaler(settings.scaler)
    return findings


async def _examine_store(settings: Settings) -> tuple[list[Finding], Sequence[str] | None]:
    """What is found of PostgreSQL and of what runs over it, and the registered task types."""
    database = Database(settings.postgres.model_copy(update={"pool_size": 1}), name="taskflux doctor")
    types: Sequence[str] | None = None
    findings: list[Finding] = []
    try:
        await database.open()
        checkup = Checkup(database)
        with suppress(StoreError):  # postgres.examine says why
            types = [name for name in await TaskTypes(database).names() if is_task_type(name)]
        findings += await postgres.examine(checkup, settings, types or [])
        findings += await postgres.examine_pooler(settings.postgres)
        if types is not None:
            findings += await postgres.examine_work(checkup, settings)
    except StoreError as error:
        findings.append(postgres.unreachable(error))
    finally:
        await database.close()
    return findings, types


def _examine_settings() -> tuple[Settings | None, list[Finding]]:
    """The settings, as far as they can be read, and what is to be said about them."""
    findings: list[Finding] = []
    settings: Settings | None = None
    try:
        settings = load("postgres", "kafka")
    except WrongSettings as error:
        findings += _wrong(str(error))
        try:
            settings = load()  # what is merely unset does not keep the rest from being looked at
        except WrongSettings:
            return None, findings
    else:
        findings.append(SETTINGS.ok("environment", "every TASKFLUX_… variable is read and none contradicts another"))
    for handler in built_in_handlers():
        if handler.provider is None:
            continue
        try:
            load_provider(handler.provider.name, handler.provider.settings)
        except WrongSettings as error:
            findings += _wrong(str(error))
    findings += judge_settings(settings)
    return settings, findings


def _wrong(sentences: str) -> Iterator[Finding]:
    for sentence in sentences.splitlines():
        name, _, told = sentence.partition(" ")
        yield SETTINGS.problem(name.rstrip(":"), told, f"correct {name.rstrip(':')}: no process starts with it")


def judge_settings(settings: Settings) -> Iterator[Finding]:
    """What is allowed and unwise."""
    if settings.postgres.pooler and settings.postgres.migrate_dsn is None:
        yield SETTINGS.warning(
            "migrations",
            "TASKFLUX_POSTGRES__POOLER is true and TASKFLUX_POSTGRES__MIGRATE_DSN is unset",
            "set TASKFLUX_POSTGRES__MIGRATE_DSN to PostgreSQL's own address: migrations do not belong behind a pooler",
        )
    if settings.auth.mode != "required":
        yield SETTINGS.warning(
            "authentication",
            f"TASKFLUX_AUTH__MODE is {settings.auth.mode}: whoever reaches ingest or notify may do everything",
            "give each client a key (`taskflux keys create`), and set it to required",
        )
    if settings.auth.bootstrap_key is not None:
        yield SETTINGS.warning(
            "bootstrap key",
            "TASKFLUX_AUTH__BOOTSTRAP_KEY may do everything, never expires, and is in the environment of each replica",
            "make keys with fewer scopes by `taskflux keys create`, and unset it",
        )
    if settings.kafka.security_protocol == "SASL_PLAINTEXT":
        yield SETTINGS.warning(
            "Kafka password", "SASL_PLAINTEXT sends it in the clear", "use SASL_SSL, unless the network is trusted"
        )
    if settings.relay.grace > 60:
        yield SETTINGS.warning(
            "publish grace",
            f"a publish that was lost is repeated only after {settings.relay.grace:.0f} s (TASKFLUX_RELAY__GRACE)",
            "15 s are enough, as long as it is longer than TASKFLUX_KAFKA__PRODUCE_TIMEOUT",
        )
