"""What stands between a deployment's environment and its work: the schema, the topics, the leases of former workers.

The servers and we may be started by the same hand, so each command can wait for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

from taskflux.cli.program import FAILED, USAGE, leave, settings_or_leave
from taskflux.cli.values import Duration
from taskflux.store import migrate as steps
from taskflux.store.database import Database
from taskflux.store.errors import (
    OtherDeclaration,
    SchemaTooOld,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    until_available,
)
from taskflux.store.tasks import TaskTypes
from taskflux.store.upkeep import Upkeep
from taskflux.stream import provision
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.topics import is_task_type, task_group, task_topic
from taskflux.worker.handler import Handler
from taskflux.worker.loading import UnknownHandler, built_in_handlers, load, services_that_read
from taskflux.worker.settings import Settings

T = TypeVar("T")

NOT_YET: Final = (StoreUnavailable, StoreBusy, SchemaTooOld, KafkaUnavailable)
"""What passes by itself: a server that starts, and a schema that somebody else is about to bring up to date."""

PAUSES: Final = 0.5, 5.0
TELL_AGAIN: Final = 15.0
"""Seconds between two lines about the same trouble."""


_wait_option = click.option(
    "--wait", type=Duration(), default=0.0, help="Try again for this long while a server is unreachable: 90s, 2m."
)


@click.command()
@click.option(
    "--check", is_flag=True, help="Change nothing: end well once the schema is this version's, or a newer one's."
)
@_wait_option
def migrate(check: bool, wait: float) -> None:
    """Bring the database to this version's schema. Safe to run from several places at once.

    A schema of a newer release is left as it is: releases are rolled back over it.

    \b
    taskflux migrate --wait 2m
    taskflux migrate --check --wait 10m    waits for another one that migrates
    """
    settings = settings_or_leave("postgres")
    if check:
        finish(Patience(wait).wait(lambda: steps.check_schema(settings.postgres)), waited=wait)
        click.echo("the schema is current")
        return
    applied, newer = finish(_migrate(settings, Patience(wait)), waited=wait)
    for step in applied:
        click.echo(f"applied {step}")
    if newer:
        click.echo(
            f"the schema is newer than this release, which does not know {', '.join(newer)}: it is left as it is."
            " Migrations only add, so this release runs over it"
        )
    elif not applied:
        click.echo("the schema is current")


async def _migrate(settings: Settings, patience: Patience) -> tuple[Sequence[str], Sequence[str]]:
    """The steps that were applied now, and those of a newer release."""
    applied = await patience.wait(lambda: steps.migrate(settings.postgres))
    newer = await patience.wait(lambda: steps.newer_steps(settings.postgres))
    return [str(each) for each in applied], newer


@click.command()
@click.argument("handlers", nargs=-1)
@click.option(
    "--prime/--no-prime",
    default=True,
    help="Commit where a group without members and offsets begins, so that its lag is what is there.",
)
@click.option(
    "--without",
    multiple=True,
    metavar="HANDLER",
    help="A built-in handler whose type another one declares: it is not registered. May be repeated.",
)
@click.option(
    "--off",
    multiple=True,
    metavar="HANDLER[=TYPE]",
    help="A handler that runs nowhere: new tasks of its type are refused in its name, until the type is registered"
    " again. A built-in one, or any name with a type. May be repeated.",
)
@_wait_option
def topics(handlers: tuple[str, ...], prime: bool, without: tuple[str, ...], off: tuple[str, ...], wait: float) -> None:
    """Register task types and create their missing topics: of all built-in handlers, or of the HANDLERS named alone.

    \b
    taskflux topics --wait 2m
    taskflux topics --off process-sms --off crop=crop-image
    taskflux topics my_app.handlers:resize_image
    """
    settings = settings_or_leave("postgres", "kafka")
    switched_off = _switched_off(handlers, off)
    chosen = _chosen(handlers, without, switched_off)
    work = _prepare(settings, chosen, switched_off, not handlers, prime, Patience(wait))
    newly_off, report, primed = finish(work, waited=wait)
    lines = [f"{name} is off, with its handler {switched_off[name]}: new tasks are refused" for name in newly_off]
    lines += [*_told_of_topics(report, settings), *_told_of_priming(primed)]
    for line in lines or ["all topics are there"]:
        click.echo(line)
    refused = [f"{topic} could not be created: {reason}" for topic, reason in report.refused.items()]
    refused += [
        f"where {group} begins could not be committed ({reason}): allow it to us, or say --no-prime"
        for group, reason in primed.refused.items()
    ]
    if refused:
        leave("\n".join(refused), FAILED)


def _switched_off(names: Sequence[str], off: Sequence[str]) -> Mapping[str, str]:
    """The types that are off, and the handler of each."""
    if names and off:
        leave("--off is for all that runs nowhere: name no handlers beside it", USAGE)
    found = dict[str, str]()
    for each in off:
        handler, given, name = each.partition("=")
        if given and not (handler and is_task_type(name)):
            leave(f"--off {each}: it is HANDLER=TYPE, such as resize-image=image", USAGE)
        for task_type in [name] if given else [one.type for one in _named([handler])]:
            found[task_type] = handler
    return found


def _chosen(names: Sequence[str], without: Sequence[str], off: Collection[str]) -> Sequence[Handler[Any]]:
    """Those named, or all built-in ones but those left out and those of types that are `off`."""
    if names and without:
        leave("--without leaves out of all built-in handlers: name no others beside it", USAGE)
    if names:
        handlers = _named(names)
        _leave_where_declared_twice(handlers)
        return handlers
    omitted = {handler.type for handler in _named(without)}.union(off)
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


def _leave_where_declared_twice(handlers: Sequence[Handler[Any]]) -> None:
    """End the command if two of these, or one of these and a built-in one, declare different schemas for a type."""
    declared = {handler.type: handler.task_type() for handler in built_in_handlers()}
    built_in = set(declared)
    for handler in handlers:
        ours = handler.task_type()
        theirs = declared.get(handler.type, ours)
        if theirs.schema != ours.schema and not ours.replaces:
            kind = "the built-in " if handler.type in built_in else ""
            leave(
                f"the task type {handler.type!r} is declared by {kind}{theirs.declared_by}, with another schema than"
                f" {ours.declared_by} has: give this one another type, or, to replace the other, declare it"
                " with @handler(…, replaces=True); --without leaves out a built-in one",
                USAGE,
            )
        declared[handler.type] = ours
        built_in.discard(handler.type)


async def _prepare(
    settings: Settings,
    handlers: Sequence[Handler[Any]],
    off: Mapping[str, str],
    everything: bool,
    priming: bool,
    patience: Patience,
) -> tuple[Sequence[str], provision.TopicReport, provision.PrimingReport]:
    """Register these types, switch those off, and make the topics; where `everything`, those of all registered types.

    Returns the types that were on before, too.
    """
    registered, newly_off = await patience.wait(lambda: _register(settings, handlers, off))
    types = [name for name in registered if is_task_type(name)] if everything else [each.type for each in handlers]
    report = await patience.wait(lambda: provision.ensure_topics(settings.kafka, types))
    readers = list(_readers(settings, types)) if priming else []
    return newly_off, report, await patience.wait(lambda: provision.prime(settings.kafka, readers))


async def _register(
    settings: Settings, handlers: Sequence[Handler[Any]], off: Mapping[str, str]
) -> tuple[Sequence[str], Sequence[str]]:
    """The names of all registered types, these among them, and of those that are off now and were on before."""
    database = Database(settings.postgres, pool_size=1)
    await database.open()
    try:
        types = TaskTypes(database)
        for handler in handlers:
            await types.register(handler.task_type())
        newly_off = [name for name, handler in off.items() if await types.switch_off(name, handler)]
        return await types.names(), newly_off
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


def _told_of_topics(report: provision.TopicReport, settings: Settings) -> Iterator[str]:
    for topic in report.created:
        yield f"created {topic}"
    for topic, partitions in report.too_few_partitions.items():
        yield (
            f"{topic} has {partitions} partitions, fewer than TASKFLUX_KAFKA__PARTITIONS"
            f" ({settings.kafka.partitions}): add some with Kafka's own tools if handlers shall scale further"
        )


def _told_of_priming(report: provision.PrimingReport) -> Iterator[str]:
    for group, at in report.primed.items():
        what = f"{at.partitions} partitions, {at.waiting} records wait"
        yield f"primed {group}: it begins at the start of {at.topic} ({what})"
    for group in report.left_to_members:
        yield f"{group} has members, which commit where it begins themselves"
    for group, topic in report.missing.items():
        yield f"{topic} does not exist: there is nothing to prime for {group}"


@click.command("end-leases", hidden=True)
@click.option("--pid", type=int, help="Only the worker with this process id.")
def end_leases(pid: int | None) -> None:
    """End the leases of the workers under TASKFLUX_WORKER__ORIGIN: for the supervisor that saw them die."""
    settings = settings_or_leave("postgres")
    origin = settings.worker.origin
    if origin is None:
        leave("TASKFLUX_WORKER__ORIGIN is not set: whose leases shall end?", USAGE)

    async def end() -> int:
        database = Database(settings.postgres, pool_size=1)
        await database.open()
        try:
            return await Upkeep(database).end_leases_of(origin, pid)
        finally:
            await database.close()

    click.echo(f"ended {finish(end())} leases")


class Patience:
    """A time, counted from here on, in which work is tried again while a server is unreachable.

    What is waited for is told on stderr: at first, when it is something else, and now and then.
    """

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._told: tuple[str, float] | None = None

    async def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, which must bear being done again. A try that has begun is not cut short.

        Raises:
            Exception: what the last try raised.
        """
        left = self._until - time.monotonic()
        return await until_available(work, retry=NOT_YET, seconds=left, pauses=PAUSES, on_wait=self._tell)

    def _tell(self, error: Exception) -> None:
        now, said = time.monotonic(), str(error)
        if self._told is None or self._told[0] != said or now - self._told[1] >= TELL_AGAIN:
            self._told = said, now
            click.echo(f"waiting, {self._until - now:.0f} s more: {told(error)}", err=True)


def finish(work: Coroutine[Any, Any, T], *, waited: float = 0.0) -> T:
    """The result of `work`; the command ends where a server was unreachable for `waited` seconds, or refuses."""
    try:
        return asyncio.run(work)
    except (StoreError, KafkaUnavailable) as error:
        how_long = f"gave up after {waited:g} s: " if waited and isinstance(error, NOT_YET) else ""
        leave(how_long + told(error), FAILED)


def told(error: Exception) -> str:
    """Which server does not do what is asked, by the variable that names it, and why."""
    if isinstance(error, SchemaTooOld):
        return f"the schema: {error}"
    if isinstance(error, OtherDeclaration):
        return str(error)
    if isinstance(error, StoreError):
        return f"PostgreSQL (TASKFLUX_POSTGRES__DSN): {error}"
    said = error.with_fix if isinstance(error, KafkaUnavailable) else error
    return f"Kafka (TASKFLUX_KAFKA__BOOTSTRAP_SERVERS): {said}"
