"""Retired instructions, counted by Valgrind: what else the machine does, and how fast it is, changes nothing.

A program runs some 20 times slower under callgrind, and 50 times while its instructions are counted. Those of the
kernel are not.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taskflux.local.console import Trouble, gist
from taskflux.local.processes import Process

TOTAL: Final = re.compile(r"^(?:totals|summary): (\d+)$", re.MULTILINE)
PATIENCE: Final = 120.0
"""Seconds that a command to the counter of a process may take."""


def missing() -> str | None:
    """Why instructions cannot be counted here; None: they can."""
    found = all(map(shutil.which, ("valgrind", "vgdb")))
    return None if found else "valgrind is missing: install it (on Debian and Ubuntu: apt-get install valgrind)"


def counted(arguments: Sequence[str], directory: Path) -> int:
    """The instructions of this Python with `arguments`, from its start to its end.

    Raises:
        Trouble: it failed.
    """
    out = directory / "counted"
    argv = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, *arguments]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(argv, capture_output=True, text=True, env={**plain, "PYTHONHASHSEED": "0"}, check=False)
    if ran.returncode:
        raise Trouble(f"{' '.join(argv)} failed: {gist(ran.stderr)}")
    return total(out.read_text())


def total(text: str) -> int:
    """The instructions of a dump of callgrind.

    Raises:
        Trouble: it has no total.
    """
    found = TOTAL.search(text)
    if found is None:
        raise Trouble("a dump of callgrind has no total")
    return int(found[1])


@dataclass
class Instructions:
    """The instructions of a process that `argv` has started; counting begins with `begin`."""

    process: Process
    out: Path
    dumps: int = 0

    @staticmethod
    def argv(out: Path, *arguments: str) -> list[str]:
        """This Python with `arguments`, as a program whose instructions can be counted."""
        options = ("-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}")
        return ["valgrind", *options, sys.executable, *arguments]

    async def begin(self) -> None:
        """Count from now on: the process is slower from here."""
        await self._tell("instrumentation", "on")

    async def zero(self) -> None:
        """Forget what was counted."""
        await self._tell("zero")

    async def read(self) -> int:
        """What was counted since `zero`, or since the last `read`."""
        await self._tell("dump")
        self.dumps += 1
        return total(self.out.with_name(f"{self.out.name}.{self.dumps}").read_text())

    async def _tell(self, *words: str) -> None:
        child = await asyncio.create_subprocess_exec(
            "vgdb", f"--pid={self.process.pid}", *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            said, _ = await asyncio.wait_for(child.communicate(), PATIENCE)
        except TimeoutError:
            child.kill()
            await child.wait()
            raise Trouble(f"{self.process.name} did not answer vgdb within {PATIENCE:.0f} s") from None
        if child.returncode:
            raise Trouble(f"vgdb {' '.join(words)} failed for {self.process.name}: {gist(said.decode())}")
