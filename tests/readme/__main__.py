"""`python -m tests.readme`: the commands of README.md and docs/, run as written in a fresh clone of the last commit."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from tests.readme.blocks import BadReadme
from tests.readme.check import check
from tests.readme.trouble import Failed


def main(repository: Path) -> int:
    """0 when all went as the README says; else 1, with the reason on standard error."""
    # A check that is run in the background may have been told to ignore Ctrl-C, and what it starts would be, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="taskflux-readme-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # PostgreSQL may run as another user
        try:
            check(repository, Path(directory))
        except (BadReadme, Failed) as reason:
            print(f"README check: {reason}", file=sys.stderr)
            return 1
    print("README check: every command did what it says")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]).absolute()))
