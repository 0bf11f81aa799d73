"""When a provider's circuit opens, how it is probed, and how fast work comes back: pure, no clock of its own."""

from __future__ import annotations

from typing import Final

OPEN_AFTER: Final = 3
"""Different tasks that must fail, with no success between them, before the circuit opens."""

FIRST_PROBE: Final = 1.0
LAST_PROBE: Final = 15.0
"""Seconds to the first probe, and the longest wait between two."""

MOST_PROBES: Final = 64
"""Tasks that one probe is at most."""

RAMP_START: Final = 20.0
RAMP_SECONDS: Final = 20.0
"""Tasks a second right after closing, doubled every two seconds; after `RAMP_SECONDS` there is no limit."""


def probe_delay(probes: int) -> float:
    """Seconds until the next probe after `probes` of them failed."""
    return min(LAST_PROBE, FIRST_PROBE * 2.0 ** min(probes, 30))


def probe_breadth(probes: int) -> int:
    """Tasks that the next probe is after `probes` of them were answered by a refusal.

    A provider that answers may refuse those very tasks, and not us: so each probe asks for twice as many. While it does
    not answer, a probe is one task, because what becomes of it may stay unknown.
    """
    return min(MOST_PROBES, 1 << min(probes, 30))


def release_rate(closed_for: float | None) -> float | None:
    """Tasks a second that may be published `closed_for` seconds after the circuit closed; None is no limit."""
    if closed_for is None or closed_for >= RAMP_SECONDS:
        return None
    return RAMP_START * float(2.0 ** (max(closed_for, 0.0) / 2.0))
