"""`python -m tests.e2e.apiserver`: builds the control plane, or says why it cannot; with `test` runs the tests, too."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from taskflux.local.console import Trouble
from tests.chart import crds, tools
from tests.chart.tools import Missing
from tests.e2e.programs import build, kubernetes_version

SKIPPED = 75
DESCRIPTION = "Builds what the tests of the chart against an API server need, into a cache outside the repository."


def main() -> int:
    """0: all is well; 75: this machine cannot have it, the last line is the reason; else something is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.apiserver", description=DESCRIPTION)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long building may take (%(default).0f)")
    parser.add_argument("test", nargs="?", choices=["test"], help="run the tests, too; what follows is for pytest")
    arguments, for_pytest = parser.parse_known_args()
    code = _build(arguments.minutes * 60)
    return code or (_test(for_pytest) if arguments.test else 0)


def _build(seconds: float) -> int:
    started = time.monotonic()
    try:
        tools.helm()
        crds.files()
        directory = build(partial(print, flush=True), seconds=seconds)
    except Missing as missing:
        print(f"no API server to test against: {missing}".replace("\n", " "))
        return SKIPPED
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    print(f"a control plane {kubernetes_version()} is in {directory} ({time.monotonic() - started:.0f} s)", flush=True)
    return 0


def _test(arguments: Sequence[str]) -> int:
    return pytest.main(["-m", "slow", "--durations=5", str(Path(__file__).parent), *arguments])


if __name__ == "__main__":
    sys.exit(main())
