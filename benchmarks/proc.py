"""What the kernel knows of processes (Linux: clock_getcpuclockid(3), proc(5))."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterator
from ctypes import CDLL, byref, c_int
from pathlib import Path
from typing import Final

_LIBC: Final = CDLL(None)
_MEMORY: Final = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)
_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads so far, to the nanosecond: what /proc counts in are 10 ms.

    Raises:
        ProcessLookupError: there is no such process.
    """
    clock = c_int()
    if _LIBC.clock_getcpuclockid(pid, byref(clock)):
        raise ProcessLookupError(pid)
    return time.clock_gettime(clock.value)


def family(pid: int) -> Iterator[int]:
    """The process and all that it has started, as far as they live."""
    yield pid
    try:
        threads = list((_PROC / str(pid) / "task").iterdir())
        children = [(thread / "children").read_text().split() for thread in threads]
    except OSError:  # it, or a thread of it, has ended
        return
    for child in itertools.chain(*children):
        yield from family(int(child))


def family_cpu_seconds(pid: int) -> float:
    """The time of a process and of all that it has started, ended children included (those to 10 ms).

    Raises:
        ProcessLookupError: there is no such process.
    """
    found = cpu_seconds(pid)
    for member in family(pid):
        try:
            found += cpu_seconds(member) if member != pid else 0.0
            ended = (_PROC / str(member) / "stat").read_text().rpartition(")")[2].split()[13:15]
            found += sum(map(int, ended)) / _TICKS
        except OSError:  # a child has ended meanwhile
            continue
    return found


def memory_mib(pid: int) -> dict[str, float]:
    """Of a process and all that it has started, in MiB: `PSS`, its share of what it shares included, and `private`,
    what would be free without it.
    """
    found = {"PSS MiB": 0.0, "private MiB": 0.0}
    for member in family(pid):
        sizes = dict(_MEMORY.findall((_PROC / str(member) / "smaps_rollup").read_text()))
        found["PSS MiB"] += int(sizes["Pss"]) / 1024
        found["private MiB"] += (int(sizes["Private_Clean"]) + int(sizes["Private_Dirty"])) / 1024
    return found
