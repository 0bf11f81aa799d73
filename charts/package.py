"""`python -m charts.package [DIRECTORY]`: the chart as an archive, byte for byte the same from the same commit.

Helm writes each file's time into the archive: all are set to the commit's, or to SOURCE_DATE_EPOCH. HELM names another
helm than the one that the tests are pinned to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from taskflux.local.console import Trouble
from tests.chart import tools

CHART: Final = Path(__file__).with_name("taskflux")
ROOT: Final = CHART.parents[1]
TIMEOUT: Final = 120.0


def main() -> int:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist")
    try:
        package(CHART, directory, epoch())
    except (Trouble, subprocess.SubprocessError) as error:
        print(f"the chart was not packaged: {error}", file=sys.stderr)
        return 1
    return 0


def package(chart: Path, directory: Path, seconds: int) -> None:
    """Write the archive of `chart` into `directory`, its files as of `seconds` since 1970.

    Raises:
        Trouble: there is no helm.
        SubprocessError: helm would not have the chart; it has said why.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="taskflux-chart-") as temporary:
        copy = Path(temporary) / chart.name
        shutil.copytree(chart, copy)
        for path in copy.rglob("*"):
            os.utime(path, (seconds, seconds))
        command = [helm(), "package", str(copy), "--destination", str(directory)]
        subprocess.run(command, check=True, timeout=TIMEOUT)


def helm() -> str:
    """HELM, else the pinned one, else one that is installed. Raises Trouble."""
    if (named := os.environ.get("HELM")) is not None:
        return named
    try:
        return str(tools.helm())
    except Trouble:
        if (installed := shutil.which("helm")) is None:
            raise
        return installed


def epoch() -> int:
    """SOURCE_DATE_EPOCH, else the time of the last commit that touched the chart, else 1980."""
    if (given := os.environ.get("SOURCE_DATE_EPOCH")) is not None:
        return int(given)
    command = ["git", "log", "-1", "--format=%ct", "--", str(CHART)]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return int(asked.stdout.strip() or 315532800)


if __name__ == "__main__":
    sys.exit(main())
