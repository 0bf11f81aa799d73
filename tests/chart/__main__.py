"""`python -m tests.chart`: gets helm, kube-score and the custom resources' definitions: no test is skipped for them."""

from __future__ import annotations

import sys

from taskflux.local.console import Trouble
from tests.chart import crds, tools
from tests.k8s import gotools


def main() -> int:
    """Answers the exit code: 0 when everything is there."""
    try:
        tools.helm()
        crds.files()
        gotools.kube_score()
    except Trouble as trouble:
        print(f"the chart cannot be tested: {trouble}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
