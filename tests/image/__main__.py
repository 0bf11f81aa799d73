"""`python -m tests.image`: the image's tests, where containers can be built and run; arguments go to pytest.

Exit 75 when they cannot, with the reason as the last line.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.image.base import find_base
from tests.image.engine import find_engine
from tests.image.unavailable import Unavailable

SKIPPED = 75


def main(arguments: list[str]) -> int:
    """pytest's exit code, or 75."""
    try:
        base = find_base(find_engine().program)
    except Unavailable as reason:
        print(f"the image cannot be tested here: {reason}")
        return SKIPPED
    print(f"base: {base.what}", flush=True)
    command = [sys.executable, "-m", "pytest", "-m", "slow", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
