"""`taskflux prune` and `taskflux audit`: housekeeping, straight on the servers (no API in between)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, TypeVar

import click

from taskflux.cli.program import FAILED, UNREACHABLE, USAGE, leave, settings_or_leave
from taskflux.cli.shown import counted, json_option, print_json, print_table
from taskflux.cli.values import Duration
from taskflux.store.database import Database
from taskflux.store.errors import StoreBusy, StoreError, StoreUnavailable
from taskflux.store.retention import Ages, Retention
from taskflux.store.upkeep import Upkeep
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.positions import Positions
from taskflux.upkeep.pruner import Pruned, Pruner, PruneRefused, check_ages
from taskflux.upkeep.recovery import Auditor
from taskflux.worker.settings import Settings

T = TypeVar("T")


@click.command()
@click.option("--succeeded", type=Duration(), help="Delete tasks that succeeded this long ago: 30d.")
@click.option(
    "--dead",
    type=Duration(),
    help="The same for dead tasks, and dead letters without an age of their own.",
)
@click.option("--cancelled", type=Duration(), help="The same for cancelled tasks.")
@click.option("--dead-letters", type=Duration(), help="The same for dead letters.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@json_option
def prune(
    succeeded: float | None,
    dead: float | None,
    cancelled: float | None,
    dead_letters: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete what is past its age. What is not named is kept for ever.

    Tasks go a week at a time, by when they were accepted: up to seven days after their age. Safe beside everything that
    runs, and to break off. One prune at a time.
    """
    settings = settings_or_leave("postgres")
    ages = Ages(_age(succeeded), _age(dead), _age(cancelled), _age(dead if dead_letters is None else dead_letters))
    try:
        check_ages(ages, settings.kafka.retention_hours)
        pruned = _run(_prune(settings, ages, dry_run))
    except PruneRefused as error:
        leave(str(error), USAGE if not ages.given else FAILED)
    if as_json:
        print_json(_document(pruned, dry_run))
    else:
        _tell(pruned, dry_run)
    if pruned.trouble:
        leave("\n".join(pruned.trouble), FAILED)


@click.command()
@json_option
def audit(as_json: bool) -> None:
    """Look for queued tasks whose record Kafka has lost, and publish them again.

    The relay does the same all the time; this does it now.
    """
    settings = settings_or_leave("postgres", "kafka")
    requeued = _run(_audit(settings))
    if as_json:
        print_json({"requeued": requeued})
    elif not requeued:
        click.echo("Kafka has a record of every queued task: nothing was requeued")
    else:
        print_table(["type", "requeued"], sorted(requeued.items()))


async def _prune(settings: Settings, ages: Ages, dry_run: bool) -> Pruned:
    async with AsyncExitStack() as stack:
        database = await _open(settings, stack)
        return await Pruner(Retention(database), Upkeep(database)).run(ages, dry_run=dry_run)


async def _audit(settings: Settings) -> Mapping[str, int]:
    async with AsyncExitStack() as stack:
        database = await _open(settings, stack)
        positions = Positions(settings.kafka)
        stack.push_async_callback(positions.close)
        return dict(await Auditor(settings, database, positions).audit())


async def _open(settings: Settings, stack: AsyncExitStack) -> Database:
    database = Database(settings.postgres, pool_size=1, name="taskflux")
    await database.open()
    stack.push_async_callback(database.close)
    return database


def _age(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _document(pruned: Pruned, dry_run: bool) -> dict[str, Any]:
    return {
        "dryRun": dry_run,
        "tasks": {state: pruned.tasks[state] for state in ("succeeded", "dead", "cancelled")},
        "partitions": pruned.partitions,
        "moved": pruned.moved,
        "deadLetters": pruned.dead_letters,
        "trouble": pruned.trouble,
    }


def _tell(pruned: Pruned, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    for state in ("succeeded", "dead", "cancelled"):
        click.echo(f"{counted(pruned.tasks[state], f'{state} task')} {would}deleted")
    click.echo(f"{counted(pruned.dead_letters, 'dead letter')} {would}deleted")
    if pruned.partitions:
        names = ", ".join(pruned.partitions)
        click.echo(f"{counted(len(pruned.partitions), 'partition')} {would}dropped: {names}")
    if pruned.moved:
        click.echo(f"{counted(pruned.moved, 'task')} {would}moved out of them, and kept")


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except (StoreUnavailable, StoreBusy) as error:
        leave(f"PostgreSQL (TASKFLUX_POSTGRES__DSN): {error}", UNREACHABLE)
    except StoreError as error:
        leave(f"PostgreSQL (TASKFLUX_POSTGRES__DSN): {error}", FAILED)
    except KafkaUnavailable as error:
        leave(f"Kafka (TASKFLUX_KAFKA__BOOTSTRAP_SERVERS): {error.with_fix}", UNREACHABLE)
