"""What a deployment does before its handlers start: migrate, create topics, register types, show settings."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn, TypeVar

import click

from handlers.runtime.settings import Settings, WrongSettings, load
from handlers.store.errors import StoreError

T = TypeVar("T")


def migrate_database() -> None:
    """`taskflux migrate`."""
    from handlers.store.migrate import migrate

    settings = _settings("postgres")
    applied = _run(migrate(settings.postgres))
    for migration in applied:
        click.echo(f"applied {migration.version:04} {migration.name}")
    if not applied:
        click.echo("the schema is current")


def prepare_topics(names: Sequence[str]) -> None:
    """`taskflux topics`."""
    settings = _settings("postgres", "kafka")
    report = _run(_prepare(settings, names))
    for line in report:
        click.echo(line)


async def _prepare(settings: Settings, names: Sequence[str]) -> list[str]:
    from handlers.cli.loading import UnknownHandler, built_in_handlers, load
    from handlers.runtime.handler import Handler
    from handlers.store.database import Database
    from handlers.store.task_types import TaskTypes
    from handlers.stream.provision import ensure_topics

    try:
        own = [target for target in map(load, names) if isinstance(target, Handler)]
    except UnknownHandler as error:
        _fail(str(error), 2)
    known = [*built_in_handlers(), *own]
    database = Database(settings.postgres, pool_size=1)
    await database.open()
    try:
        types = TaskTypes(database)
        for handler in known:
            await types.register(handler.task_type())
        registered = await types.all()
    finally:
        await database.close()
    report = await ensure_topics(settings.kafka, registered)
    lines = [f"created {topic}" for topic in report.created]
    lines += [
        f"{topic} has {partitions} partitions, fewer than TASKFLUX_KAFKA__PARTITIONS ({settings.kafka.partitions}):"
        " add some with Kafka's own tools if handlers shall scale further"
        for topic, partitions in report.too_few_partitions.items()
    ]
    if report.refused:
        _fail("\n".join(f"{topic} could not be created: {reason}" for topic, reason in report.refused.items()), 1)
    return lines or ["all topics are there"]


def show_config() -> None:
    """`taskflux config`."""
    from handlers.cli.loading import built_in_handlers
    from handlers.runtime.settings import load_provider

    document: dict[str, Any] = json.loads(_settings().model_dump_json())
    try:
        for handler in built_in_handlers():
            if handler.provider is not None:
                section = load_provider(handler.provider.name, handler.provider.settings)
                document[handler.provider.name] = json.loads(section.model_dump_json())
    except WrongSettings as error:
        _fail(f"the settings are wrong.\n{error}", 2)
    click.echo(json.dumps(document, indent=2))


def end_former_leases(pid: int | None) -> None:
    """`taskflux end-leases`."""
    from handlers.store.database import Database
    from handlers.store.upkeep import Upkeep

    settings = _settings("postgres")
    origin = settings.worker.origin
    if origin is None:
        _fail("TASKFLUX_WORKER__ORIGIN is not set: whose leases shall end?", 2)

    async def end() -> int:
        database = Database(settings.postgres, pool_size=1)
        await database.open()
        try:
            return await Upkeep(database).end_leases_of(origin, pid)
        finally:
            await database.close()

    click.echo(f"ended {_run(end())} leases")


def _settings(*needs: str) -> Settings:
    try:
        return load(*needs)
    except WrongSettings as error:
        _fail(f"the settings are wrong.\n{error}", 2)


def _run(work: Coroutine[Any, Any, T]) -> T:
    from handlers.stream.errors import KafkaUnavailable

    try:
        return asyncio.run(work)
    except StoreError as error:
        _fail(f"PostgreSQL (TASKFLUX_POSTGRES__DSN): {error}", 1)
    except KafkaUnavailable as error:
        _fail(f"Kafka (TASKFLUX_KAFKA__BOOTSTRAP_SERVERS): {error}", 1)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"taskflux: {message}", err=True)
    sys.exit(status)
