"""Waiting for a condition in a cluster by polling."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

POLL: Final = 0.5
"""Seconds between two polls: a cluster's answers take a tenth of that."""

T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], seconds: float, *, poll: float = POLL) -> T:
    """The first answer of `look` that is neither None nor False.

    Raises:
        AssertionError: there was none within `seconds`; the text names `what`.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(poll)
