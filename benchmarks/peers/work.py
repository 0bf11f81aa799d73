"""What the tasks do: nothing, wait for 20 ms, or report when they were started."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

NAP: Final = 0.02
KAFKA: Final = os.environ.get("BENCH_KAFKA", "")
REDIS: Final = os.environ.get("BENCH_REDIS", "")
POSTGRES: Final = os.environ.get("BENCH_POSTGRES", "")
QUEUE: Final = "bench"
AT_ONCE: Final = 512
"""Tasks that run at the same time, where the system has such a setting."""

_STAMPS: Final = ("127.0.0.1", int(os.environ.get("BENCH_STAMPS", "0")))
_SOCKET: Final = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def report(number: int) -> None:
    """Tell the benchmark `number` and the time, in nanoseconds since 1970."""
    _SOCKET.sendto(f"{number} {time.time_ns()}".encode(), _STAMPS)


def stamp(payload: Mapping[str, Any]) -> None:
    """The task `stamp`."""
    report(payload["number"])
