"""`python -m tests.k8s`: gets what these tests need, so that none is skipped for it. With `test` runs them, too.

What follows `test` is for pytest. Exit 75, with the reason as last line, where this machine cannot have it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from taskflux.local.console import Trouble
from tests.chart import crds, tools
from tests.chart.tools import Missing
from tests.k8s import gotools
from tests.kafka.classpath import java, server_classpath

SKIPPED = 75
PROMTOOL = "there is no promtool here (on Debian: apt-get install prometheus)"


CLUSTER = Path(__file__).parents[1] / "e2e" / "cluster"
"""Whose tests that need no cluster are run with these."""


def main(arguments: list[str]) -> int:
    """0: all is well; 75: this machine cannot have it; else something is broken."""
    code = _prepare()
    if code != 0 or arguments[:1] != ["test"]:
        return code
    command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), str(CLUSTER), *arguments[1:]]
    return subprocess.run(command, check=False).returncode


def _prepare() -> int:
    try:
        tools.helm()
        crds.files()
        for module in (gotools.SKAFFOLD, gotools.MAILPIT):
            crds.directory(module)
        for program in (gotools.actionlint, gotools.compose, gotools.kind):
            program()
        java()
        server_classpath()
        if shutil.which("promtool") is None:
            raise Missing(PROMTOOL)
    except Missing as missing:
        print(f"not all can be checked here: {missing}".replace("\n", " "))
        return SKIPPED
    except Trouble as trouble:
        print(f"make test-k8s: {trouble}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
