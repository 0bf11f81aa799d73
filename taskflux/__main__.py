"""`taskflux`, and `python -m taskflux`: a deployment is started here, every other command by `taskflux.cli`.

A waiting message pays for each module that is imported before it is handled, so a deployment gets by without click.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Final, NoReturn

_SERVERS: Final = frozenset({"TASKFLUX_POSTGRES__DSN", "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS"})


def main() -> None:
    """Run what the command line says, and end the process."""
    if os.environ.get("TASKFLUX_SECRETS_DIR"):
        from taskflux import secrets

        try:
            secrets.read()
        except secrets.Unreadable as error:
            print(f"taskflux: {error}", file=sys.stderr)
            sys.exit(2)
    match sys.argv[1:]:
        case ["run", name] if not name.startswith("-") and _servers_are_named():
            _run(name)
        case _:
            from taskflux.cli import main as command

            command()


def _servers_are_named() -> bool:
    """Whether the environment has what leads to the servers, so that no `taskflux dev` is looked for."""
    named = {name.upper() for name, value in os.environ.items() if value}
    return "TASKFLUX_WORKER__ORIGIN" in os.environ or named >= _SERVERS


def _run(name: str) -> NoReturn:
    # The kernel keeps what has no handler from a container's first process, which then waits for its SIGKILL.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    gc.disable()  # what is imported stays: to look for garbage meanwhile takes a twelfth of the start
    try:
        from taskflux.worker.loading import UnknownHandler, run

        try:
            sys.exit(run(name))
        except UnknownHandler as error:
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
