"""`taskflux dev` over `tiny_cli.py`: python tiny_dev.py <port> <data dir> <modules>."""

from __future__ import annotations

import sys
from pathlib import Path

from taskflux.local import dev

TINY_CLI = (sys.executable, str(Path(__file__).with_name("tiny_cli.py")))

if __name__ == "__main__":
    sys.exit(dev.main(int(sys.argv[1]), Path(sys.argv[2]), samples=False, own=sys.argv[3:], cli=TINY_CLI))
