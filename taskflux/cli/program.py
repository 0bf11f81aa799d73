"""The command as a process: how it ends when it is told to."""

from __future__ import annotations

import signal
from typing import Any, NoReturn

import click

from taskflux.cli.exits import INTERRUPTED, TERMINATED
from taskflux.cli.lazy import LazyGroup


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
