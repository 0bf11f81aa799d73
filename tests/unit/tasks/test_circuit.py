from __future__ import annotations

import pytest

from taskflux.tasks.circuit import (
    FIRST_PROBE,
    LAST_PROBE,
    RAMP_SECONDS,
    RAMP_START,
    probe_delay,
    release_rate,
)


def test_probes_come_ever_more_slowly_up_to_a_bound() -> None:
    assert [probe_delay(probes) for probes in range(6)] == [FIRST_PROBE, 2.0, 4.0, 8.0, LAST_PROBE, LAST_PROBE]
    assert probe_delay(10**9) == LAST_PROBE


def test_work_comes_back_at_a_rate_that_doubles_every_two_seconds() -> None:
    assert [release_rate(seconds) for seconds in (0.0, 2.0, 4.0)] == [RAMP_START, 2 * RAMP_START, 4 * RAMP_START]


@pytest.mark.parametrize("closed_for", [None, RAMP_SECONDS, 1e9])
def test_a_circuit_that_never_opened_or_closed_long_ago_holds_nothing_back(closed_for: float | None) -> None:
    assert release_rate(closed_for) is None


def test_a_clock_that_went_back_does_not_stop_the_release() -> None:
    assert release_rate(-3.0) == RAMP_START
