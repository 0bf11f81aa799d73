"""What the kernel knows of a process (Linux: proc(5))."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_MEMORY: Final = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_mib(pid: int) -> dict[str, float]:
    """`PSS`, its share of what it shares included, and `private`, what would be free without it; both in MiB."""
    found = {name: int(size) / 1024 for name, size in _MEMORY.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())}
    return {"PSS MiB": found["Pss"], "private MiB": found["Private_Clean"] + found["Private_Dirty"]}
