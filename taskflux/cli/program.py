"""The command as a process: how it ends, and what its exit status says.

Scripts rely on the status: a number is never given another meaning.

| status | meaning |
|---|---|
| 0 | it is done, or the answer is yes |
| 1 | it was refused or failed: a task that died, a problem that `doctor` found, an id that is not there |
| 2 | the command was called wrongly, or a setting is wrong |
| 3 | the server cannot be reached, or cannot answer now: try again later |
| 4 | the time given to wait has passed, and the outcome is still open |
| 130 | Ctrl-C |
| 143 | SIGTERM |
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from taskflux.local.environment import Found
    from taskflux.worker.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

URL_VARIABLE: Final = "TASKFLUX_API__URL"
KEY_VARIABLE: Final = "TASKFLUX_API__KEY"
URL: Final = "taskflux.url"
"""Where a context keeps what `--url` was given before the subcommand."""
_DEV: Final = "taskflux.dev"

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
STILL_OPEN: Final = 4
INTERRUPTED: Final = 130
TERMINATED: Final = 143


def leave(message: str, status: int) -> NoReturn:
    """End the command with a sentence on stderr."""
    click.echo(f"taskflux: {message}", err=True)
    sys.exit(status)


def dev() -> Found | None:
    """The `taskflux dev` that this folder belongs to, if one serves; why one that is there is not used goes to stderr.

    A command looks for it once, however many of its parts ask.
    """
    from taskflux.local.environment import NotServing, find

    context = click.get_current_context(silent=True)
    meta = {} if context is None else context.meta
    if _DEV not in meta:
        try:
            meta[_DEV] = find(os.environ)
        except NotServing as reason:
            meta[_DEV] = None
            click.secho(f"taskflux: {reason}", dim=True, err=True)
    found: Found | None = meta[_DEV]
    return found


def say_used(found: Found) -> None:
    """Say on stderr that this stack is used."""
    where = found.variables.get(URL_VARIABLE, "")
    click.secho(f"taskflux: using the taskflux dev in {found.directory} ({where})", dim=True, err=True)


def join_dev() -> None:
    """Take from a running `taskflux dev` what leads to its servers, unless the environment names others."""
    from taskflux.local.environment import missing_in, own_servers

    if "TASKFLUX_WORKER__ORIGIN" in os.environ or {"POSTGRES", "KAFKA"} <= own_servers(os.environ):
        return
    if (found := dev()) is not None and (missing := missing_in(os.environ, found.variables)):
        os.environ.update(missing)
        say_used(found)


def settings_or_leave(*needs: str) -> Settings:
    """The settings, with what a command `needs` set in them; the command ends where they are wrong."""
    join_dev()
    from taskflux.worker.settings import WrongSettings, load

    try:
        return load(*needs)
    except WrongSettings as error:
        leave(f"the settings are wrong.\n{error}", USAGE)


def _keep_url(context: click.Context, parameter: click.Parameter, url: str | None) -> None:
    if url is not None:
        context.meta[URL] = url


def url_option(function: F) -> F:
    """`--url` of a group, for those of its commands that call the API."""
    option = click.option("--url", expose_value=False, callback=_keep_url, help="Where TaskFlux serves its API.")
    return option(function)


class Group(click.Group):
    """A group of commands, some imported when they are called: `lazy` is name → `package.module:attribute`.

    For a command that is not there, it names the one that may be meant. Its list of commands has whole sentences.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = self._lazy.get(cmd_name)
        if target is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            close = get_close_matches(name, self._shown(ctx), n=1)
            raise click.UsageError(
                f"there is no command {name!r}." + (f" Did you mean {close[0]}?" if close else ""), ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = self._shown(ctx)
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(limit=1000)) for name, each in shown.items()])

    def _shown(self, ctx: click.Context) -> dict[str, click.Command]:
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        return {name: each for name, each in commands.items() if each is not None and not each.hidden}


class Program(Group):
    """The whole of `taskflux`. Ctrl-C and SIGTERM end a command at once, unless it knows better."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The kernel keeps what has no handler from a container's first process, which then waits for its SIGKILL.
        signal.signal(signal.SIGTERM, _end)
        return super().__call__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        from taskflux.telemetry.logs import colour_wanted

        ctx.color = colour_wanted(os.environ)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)
