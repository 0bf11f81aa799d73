"""What the kernel knows of a process (Linux: clock_getcpuclockid(3), proc(5))."""

from __future__ import annotations

import re
import time
from ctypes import CDLL, byref, c_int
from pathlib import Path
from typing import Final

_LIBC: Final = CDLL(None)
_MEMORY: Final = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads so far, to the nanosecond: what /proc counts in are 10 ms.

    Raises:
        ProcessLookupError: there is no such process.
    """
    clock = c_int()
    if _LIBC.clock_getcpuclockid(pid, byref(clock)):
        raise ProcessLookupError(pid)
    return time.clock_gettime(clock.value)


def memory_mib(pid: int) -> dict[str, float]:
    """`PSS`, its share of what it shares included, and `private`, what would be free without it; both in MiB."""
    found = {name: int(size) / 1024 for name, size in _MEMORY.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())}
    return {"PSS MiB": found["Pss"], "private MiB": found["Private_Clean"] + found["Private_Dirty"]}
