"""What a task type declares about its failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """All that the rest of the system has to know about a task type to treat its tasks rightly.

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
