"""Patience with servers that are not there yet: they and we may be started by the same hand."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import click

from taskflux.cli.program import FAILED, USAGE, leave
from taskflux.store.errors import SchemaTooOld, StoreBusy, StoreError, StoreUnavailable, until_available
from taskflux.stream.client import KafkaUnavailable
from taskflux.worker.settings import Settings, WrongSettings, load

T = TypeVar("T")

NOT_YET: Final = (StoreUnavailable, StoreBusy, SchemaTooOld, KafkaUnavailable)
"""What passes by itself: a server that starts, and a schema that somebody else is about to bring up to date."""

PAUSES: Final = 0.5, 5.0
TELL_AGAIN: Final = 15.0
"""Seconds between two lines about the same trouble."""


class Patience:
    """A time, counted from here on, in which work is tried again while a server is away.

    `tell` gets what is waited for, and for how many seconds more: at first, when it is something else, and now and
    then.
    """

    def __init__(self, seconds: float, tell: Callable[[Exception, float], None]) -> None:
        self._until = time.monotonic() + seconds
        self._tell = tell
        self._told: tuple[str, float] | None = None

    async def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, which must bear being done again. A try that has begun is not cut short.

        Raises:
            Exception: what the last try raised.
        """
        left = self._until - time.monotonic()
        return await until_available(work, retry=NOT_YET, seconds=left, pauses=PAUSES, on_wait=self._say)

    def _say(self, error: Exception) -> None:
        now, said = time.monotonic(), str(error)
        if self._told is None or self._told[0] != said or now - self._told[1] >= TELL_AGAIN:
            self._told = said, now
            self._tell(error, self._until - now)


def migrate_database(wait: float) -> None:
    """`taskflux migrate`."""
    settings = settings_or_leave("postgres")
    applied, newer = finish(_migrate(settings, patience(wait)), waited=wait)
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
    from taskflux.store.migrate import migrate, newer_steps

    applied = await patience.wait(lambda: migrate(settings.postgres))
    newer = await patience.wait(lambda: newer_steps(settings.postgres))
    return [str(each) for each in applied], newer


def show_config() -> None:
    """`taskflux config`."""
    from taskflux.cli.loading import built_in_handlers
    from taskflux.worker.settings import load_provider

    document: dict[str, Any] = json.loads(settings_or_leave().model_dump_json())
    try:
        for handler in built_in_handlers():
            if handler.provider is not None:
                section = load_provider(handler.provider.name, handler.provider.settings)
                document[handler.provider.name] = json.loads(section.model_dump_json())
    except WrongSettings as error:
        leave(f"the settings are wrong.\n{error}", USAGE)
    click.echo(json.dumps(document, indent=2))


def end_former_leases(pid: int | None) -> None:
    """`taskflux end-leases`."""
    from taskflux.store.database import Database
    from taskflux.store.upkeep import Upkeep

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


def settings_or_leave(*needs: str) -> Settings:
    """The settings; the command ends where they are wrong."""
    try:
        return load(*needs)
    except WrongSettings as error:
        leave(f"the settings are wrong.\n{error}", USAGE)


def finish(work: Coroutine[Any, Any, T], *, waited: float = 0.0) -> T:
    """The result of `work`; the command ends where a server is away, `waited` seconds long, or refuses."""
    from taskflux.stream.client import KafkaUnavailable

    try:
        return asyncio.run(work)
    except (StoreError, KafkaUnavailable) as error:
        how_long = f"gave up after {waited:g} s: " if waited and isinstance(error, NOT_YET) else ""
        leave(how_long + told(error), FAILED)


def patience(seconds: float) -> Patience:
    """With a server that is away: `--wait`, told on stderr."""
    return Patience(seconds, lambda error, left: click.echo(f"waiting, {left:.0f} s more: {told(error)}", err=True))


def told(error: Exception) -> str:
    """Which server does not do what is asked, by the variable that names it, and why."""
    if isinstance(error, SchemaTooOld):
        return f"the schema: {error}"
    if isinstance(error, StoreError):
        return f"PostgreSQL (TASKFLUX_POSTGRES__DSN): {error}"
    return f"Kafka (TASKFLUX_KAFKA__BOOTSTRAP_SERVERS): {error}"
