"""`python -m tests.observability`: all of these tests, after getting what they need. Arguments go to pytest.

Where something is missing and cannot be installed here, it ends with 75, and its last line says what.
"""

from __future__ import annotations

import subprocess
import sys

from tests.observability.tools import PACKAGES, install_missing, missing

SKIPPED = 75


def main() -> int:
    """pytest's exit code, or 75."""
    install_missing()
    if lacking := missing():
        packages = sorted({PACKAGES[name] for name in lacking})
        print(f"not here: {', '.join(lacking)} (on Debian, as root: apt-get install {' '.join(packages)})")
        return SKIPPED
    return subprocess.call(
        [sys.executable, "-m", "pytest", "-m", "slow or not slow", "tests/observability", *sys.argv[1:]]
    )


if __name__ == "__main__":
    sys.exit(main())
