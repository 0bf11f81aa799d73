"""What the command's exit status says. Scripts rely on it: a number is never given another meaning.

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

import sys
from typing import Final, NoReturn

import click

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
