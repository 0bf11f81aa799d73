"""How failures are handled: what a task type declares, and when a provider's circuit opens, is probed and closes.

Pure: it reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

AmbiguousPolicy = Literal["resend", "hold"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter.

    Attempt n is followed by a delay drawn evenly from 0 to `first_delay * 2**(n - 1)`, at most `max_delay`
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

    Args:
        max_attempts: attempts in all, the first included.
        first_delay: seconds, the upper end after the first attempt.
        max_delay: seconds, the upper end that no later attempt exceeds.
    """

    max_attempts: int = 8
    first_delay: float = 2.0
    max_delay: float = 3600.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= 1000:
            raise ValueError(f"max_attempts is {self.max_attempts}: give at least 1 (no retry) and at most 1000")
        if self.first_delay < 0:
            raise ValueError(f"first_delay is {self.first_delay}: a delay cannot be negative")
        if self.max_delay < self.first_delay:
            raise ValueError(f"max_delay ({self.max_delay} s) is below first_delay ({self.first_delay} s): raise it")

    def ceiling(self, attempt: int) -> float:
        """The longest delay, in seconds, after attempt number `attempt` (from 1)."""
        exponent = min(attempt - 1, 62)  # beyond it only max_delay counts, and floats stay exact
        return min(self.max_delay, self.first_delay * float(2**exponent))

    def delay(self, attempt: int, jitter: float) -> float:
        """The delay in seconds after attempt number `attempt`; `jitter` is a draw from [0, 1)."""
        return self.ceiling(attempt) * jitter


@dataclass(frozen=True, slots=True)
class Policy:
    """How the tasks of one type are treated.

    Args:
        retry: attempts and delays.
        ambiguous: what to do when the side effect may have happened: send again, or hold for a person or a receipt.
        timeout: seconds that one attempt may take before it is cut off (the outcome is then `Ambiguous`).
        provider: the name of the outside service whose circuit governs this type, if any.
    """

    retry: RetryPolicy = RetryPolicy()
    ambiguous: AmbiguousPolicy = "resend"
    timeout: float = 60.0
    provider: str | None = None

    def __post_init__(self) -> None:
        if self.ambiguous not in ("resend", "hold"):
            raise ValueError(f"ambiguous is {self.ambiguous!r}: choose 'resend' or 'hold'")
        if self.timeout <= 0:
            raise ValueError(f"timeout is {self.timeout}: give the seconds that one attempt may take")


OPEN_AFTER: Final = 3
"""Different tasks that must fail, with no success between them, before the circuit opens."""

FIRST_PROBE: Final = 1.0
LAST_PROBE: Final = 15.0
"""Seconds to the first probe, and the longest wait between two."""

MOST_PROBES: Final = 64
"""The most tasks in one probe."""

RAMP_START: Final = 20.0
RAMP_SECONDS: Final = 20.0
"""Tasks a second right after the circuit closes, doubled every two seconds; after `RAMP_SECONDS` there is no limit."""


def release_rate(closed_for: float | None) -> float | None:
    """Tasks a second that may be published `closed_for` seconds after the circuit closed; None is no limit."""
    if closed_for is None or closed_for >= RAMP_SECONDS:
        return None
    return RAMP_START * float(2.0 ** (max(closed_for, 0.0) / 2.0))
