"""`python -m tests.pgbouncer`: is there what `make test-pgbouncer` needs?"""

from __future__ import annotations

import subprocess
import sys

from taskflux.local.console import Trouble
from tests.pgbouncer.pooler import pgbouncer_binary


def main() -> int:
    """0 when a pooler can be started; else 1, with a sentence on standard error."""
    try:
        binary = pgbouncer_binary()
    except Trouble as trouble:
        print(f"make test-pgbouncer: {trouble}", file=sys.stderr)
        return 1
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    print(version.partition("\n")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
