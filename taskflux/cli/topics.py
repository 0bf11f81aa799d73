"""`taskflux topics`: what Kafka and the registry of types need before handlers start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from taskflux.cli.contract import services_that_read
from taskflux.cli.loading import UnknownHandler, built_in_handlers, load
from taskflux.cli.program import FAILED, USAGE, leave
from taskflux.cli.setup import Patience, finish, patience, settings_or_leave
from taskflux.store.database import Database
from taskflux.store.task_types import TaskTypes
from taskflux.stream.provision import PrimingReport, TopicReport, ensure_topics, prime
from taskflux.stream.topics import is_task_type, task_group, task_topic
from taskflux.worker.handler import Handler
from taskflux.worker.settings import Settings


def prepare_topics(names: Sequence[str], without: Sequence[str], priming: bool, wait: float) -> None:
    """`taskflux topics`."""
    settings = settings_or_leave("postgres", "kafka")
    handlers = _chosen(names, without)
    try:
        report, primed = finish(_prepare(settings, handlers, not names, priming, patience(wait)), waited=wait)
    except OSError as error:  # ssl.SSLError is one
        leave(f"TASKFLUX_KAFKA__TLS_CA_FILE, _CERT_FILE, _KEY_FILE: they cannot be read: {error}", USAGE)
    lines = [*_told(report, settings), *_told_of_priming(primed)]
    for line in lines or ["all topics are there"]:
        click.echo(line)
    refused = [f"{topic} could not be created: {reason}" for topic, reason in report.refused.items()]
    refused += [
        f"where {group} begins could not be committed ({reason}): allow it to us, or say --no-prime"
        for group, reason in primed.refused.items()
    ]
    if refused:
        leave("\n".join(refused), FAILED)


def _chosen(names: Sequence[str], without: Sequence[str]) -> Sequence[Handler[Any]]:
    """Those named, or all built-in ones but those left out."""
    if names and without:
        leave("--without leaves out of all built-in handlers: name no others beside it", USAGE)
    if names:
        return _named(names)
    omitted = {handler.type for handler in _named(without)}
    return [handler for handler in built_in_handlers() if handler.type not in omitted]


def _named(names: Sequence[str]) -> Sequence[Handler[Any]]:
    try:
        targets = {name: load(name) for name in names}
    except UnknownHandler as error:
        leave(str(error), USAGE)
    others = [name for name, target in targets.items() if not isinstance(target, Handler)]
    if others:
        leave(
            f"no task type belongs to {', '.join(others)}: name task handlers, or nothing for all built-in ones", USAGE
        )
    return [target for target in targets.values() if isinstance(target, Handler)]


async def _prepare(
    settings: Settings, handlers: Sequence[Handler[Any]], everything: bool, priming: bool, patience: Patience
) -> tuple[TopicReport, PrimingReport]:
    """Register these types and make their topics; where `everything`, those of all types that are registered."""
    registered = await patience.wait(lambda: _register(settings, handlers))
    types = [name for name in registered if is_task_type(name)] if everything else [each.type for each in handlers]
    report = await patience.wait(lambda: ensure_topics(settings.kafka, types))
    readers = list(_readers(settings, types)) if priming else []
    return report, await patience.wait(lambda: prime(settings.kafka, readers))


async def _register(settings: Settings, handlers: Sequence[Handler[Any]]) -> Sequence[str]:
    """The names of all registered types, these among them."""
    database = Database(settings.postgres, pool_size=1)
    await database.open()
    try:
        types = TaskTypes(database)
        for handler in handlers:
            await types.register(handler.task_type())
        return await types.names()
    finally:
        await database.close()


def _readers(settings: Settings, types: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(group, topic) of everything that scales by lag."""
    prefix = settings.kafka.topic_prefix
    for name in types:
        yield task_group(prefix, name), task_topic(prefix, name)
    for reads in services_that_read(settings).values():
        if reads.topic is not None:
            yield reads.group, reads.topic


def _told(report: TopicReport, settings: Settings) -> Iterator[str]:
    for topic in report.created:
        yield f"created {topic}"
    for topic, partitions in report.too_few_partitions.items():
        yield (
            f"{topic} has {partitions} partitions, fewer than TASKFLUX_KAFKA__PARTITIONS"
            f" ({settings.kafka.partitions}): add some with Kafka's own tools if handlers shall scale further"
        )


def _told_of_priming(report: PrimingReport) -> Iterator[str]:
    for group, at in report.primed.items():
        what = f"{at.partitions} partitions, {at.waiting} records wait"
        yield f"primed {group}: it begins at the start of {at.topic} ({what})"
    for group in report.left_to_members:
        yield f"{group} has members, which commit where it begins themselves"
    for group, topic in report.missing.items():
        yield f"{topic} does not exist: there is nothing to prime for {group}"
