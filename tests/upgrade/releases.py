"""The two releases: the code of this tree, and that of the commit before it, taken from git's history."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEFORE = "20a089bf3be572a068b4c78dd30c5fc935d7ebd3"
"""The last commit of the release before's protocol."""
CLI = (sys.executable, "-P", "-m", "taskflux")
_ASK = "import taskflux, taskflux.handlers as h; print(*taskflux.__path__); print(*h.__path__)"


class HistoryMissing(Exception):
    """The release before cannot be taken from this clone; the text is one line."""


@dataclass(frozen=True, slots=True)
class Release:
    """The code of one release. `folder` holds its `taskflux`; None: that of this tree, as it is installed."""

    name: str
    folder: Path | None

    def environment(self, work: Path) -> dict[str, str]:
        """The variables with which a process runs this release; it finds the drill's handlers in `work`."""
        own = {name: value for name, value in os.environ.items() if not name.upper().startswith("TASKFLUX_")}
        paths = [str(path) for path in (self.folder, work) if path is not None]
        return own | {"PYTHONPATH": os.pathsep.join(paths)}

    def check(self, work: Path) -> None:
        """Raise RuntimeError unless such a process imports this release's own code, handlers included."""
        code, handlers = (
            (ROOT / "taskflux", ROOT / "handlers")
            if self.folder is None
            else (self.folder / "taskflux", self.folder / "taskflux" / "handlers")
        )
        argv = [sys.executable, "-P", "-c", _ASK]
        found = subprocess.run(argv, env=self.environment(work), capture_output=True, text=True, check=True, cwd=work)
        if found.stdout.split() != [str(code), str(handlers)]:
            raise RuntimeError(f"the {self.name} release would run {found.stdout.split()}, not {code} and {handlers}")


def present() -> Release:
    """This tree."""
    return Release("new", None)


def before(directory: Path) -> Release:
    """The release before, unpacked to `directory`.

    Raises:
        HistoryMissing: there is no git, no repository, or a shallow clone.
    """
    archive = ["git", "-C", str(ROOT), "archive", "--format=tar", BEFORE, "taskflux", "handlers"]
    try:
        packed = subprocess.run(archive, capture_output=True, check=True)
    except FileNotFoundError:
        raise HistoryMissing("git is not installed: the release before is taken from its history") from None
    except subprocess.CalledProcessError:
        raise HistoryMissing(
            f"commit {BEFORE[:7]}, the release before, is not in this clone's history (git fetch --unshallow gets it)"
        ) from None
    folder = directory / "before"
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        tar.extractall(folder, filter="data")
    (folder / "handlers").rename(folder / "taskflux" / "handlers")  # as it is installed
    return Release("old", folder)
