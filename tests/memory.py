"""How much memory a test's own steps take."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Peak:
    """Bytes that Python held at most inside a `with traced_peak()`, beyond those held before; known behind it."""

    bytes: int = 0


@contextmanager
def traced_peak() -> Iterator[Peak]:
    """Measure what the block allocates. What it allocated before is not counted, and tracing always ends."""
    gc.collect()
    peak = Peak()
    tracemalloc.start()
    try:
        yield peak
        _, peak.bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
