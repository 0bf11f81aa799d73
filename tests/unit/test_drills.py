from __future__ import annotations

from taskflux.handlers.process_simulated import process_simulated
from tests.drills.burst import make_tasks


def test_some_tasks_of_a_drill_are_retried_and_none_fails_as_often_as_it_may() -> None:
    """A dead letter counts as a fault: once in 10,000 drills, it may be one of chance."""
    attempts = process_simulated.policy.retry.max_attempts
    rates = [task["payload"].get("failRate", 0.0) for task in make_tasks(20_000, seed=1)]
    assert sum(rates) > 100  # of first attempts
    assert sum(rate**attempts for rate in rates) < 1e-4
