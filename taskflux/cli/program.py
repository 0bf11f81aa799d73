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
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

if TYPE_CHECKING:
    from taskflux.worker.settings import Settings

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


def settings_or_leave(*needs: str) -> Settings:
    """The settings, with what a command `needs` set in them; the command ends where they are wrong."""
    from taskflux.worker.settings import WrongSettings, load

    try:
        return load(*needs)
    except WrongSettings as error:
        leave(f"the settings are wrong.\n{error}", USAGE)


class LazyGroup(click.Group):
    """A group some of whose commands are imported when they are called: `lazy` is name → `package.module:attribute`."""

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


class Program(LazyGroup):
    """The whole of `taskflux`. Ctrl-C and SIGTERM end a command at once, unless it knows better."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The kernel keeps what has no handler from a container's first process, which then waits for its SIGKILL.
        signal.signal(signal.SIGTERM, _end)
        return super().__call__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)
