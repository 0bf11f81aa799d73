"""`python -m tests.e2e.cluster`: is there a cluster, or what makes one? With `test` runs the tests; more is for pytest.

Exit 75, with the reason as last line, where there is none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from taskflux.local.console import Trouble
from tests.chart import tools
from tests.chart.tools import Missing
from tests.e2e.cluster.machine.place import Place
from tests.e2e.cluster.place import Kind, OfThisMachine, docker_works, of_this_machine, place
from tests.k8s import gotools

SKIPPED = 75


def main(arguments: list[str]) -> int:
    """0 when the tests can run, and passed where they were run; 75 when they cannot here; else something is broken."""
    code = _prepare()
    if code != 0 or arguments[:1] != ["test"]:
        return code
    command = [sys.executable, "-m", "pytest", "-m", "slow", str(Path(__file__).parent), *arguments[1:]]
    return subprocess.run(command, check=False).returncode


def _prepare() -> int:
    try:
        where = place(os.environ, docker_works, of_this_machine)
        tools.helm()
        if isinstance(where, Kind):
            gotools.kind()
        if isinstance(where, OfThisMachine):
            Place().enter()
    except Missing as missing:
        print(f"no cluster to test on: {missing}".replace("\n", " "))
        return SKIPPED
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    print(f"the tests run on {where}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
