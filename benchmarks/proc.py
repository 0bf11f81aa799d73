"""What the kernel knows of processes (Linux: clock_getcpuclockid(3), proc(5))."""

from __future__ import annotations

import itertools
import os
import platform
import re
import struct
import time
from collections.abc import Iterator
from ctypes import CDLL, byref, c_int, get_errno
from pathlib import Path
from typing import Final

_LIBC: Final = CDLL(None)
_ERRORS: Final = CDLL(None, use_errno=True)
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


class Instructions:
    """Counts the instructions that the threads of a process retire in user space, and those of threads that they start
    (perf_event_open(2)).
    """

    _SYSCALLS: Final = {"x86_64": 298, "aarch64": 241}
    _HARDWARE, _INSTRUCTIONS, _SIZE = 0, 1, 112
    _INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 1, 1 << 5, 1 << 6

    def __init__(self, pid: int) -> None:
        """Count from now on.

        Raises:
            OSError: this machine does not count them, or not for us.
        """
        attributes = bytearray(self._SIZE)
        struct.pack_into("=IIQ", attributes, 0, self._HARDWARE, self._SIZE, self._INSTRUCTIONS)
        flags = self._INHERIT | self._EXCLUDE_KERNEL | self._EXCLUDE_HYPERVISOR
        struct.pack_into("=Q", attributes, 40, flags)
        number = self._SYSCALLS.get(platform.machine())
        if number is None:
            raise OSError(f"perf_event_open is not known on {platform.machine()}")
        self._counters: list[int] = []
        for thread in (_PROC / str(pid) / "task").iterdir():
            counter = _ERRORS.syscall(number, bytes(attributes), int(thread.name), -1, -1, 0)
            if counter < 0:
                code = get_errno()
                self.close()
                raise OSError(code, f"instructions are not counted: {os.strerror(code)}")
            self._counters.append(counter)

    def read(self) -> int:
        """How many so far."""
        return sum(struct.unpack("=Q", os.read(counter, 8))[0] for counter in self._counters)

    def close(self) -> None:
        """Stop counting."""
        while self._counters:
            os.close(self._counters.pop())
