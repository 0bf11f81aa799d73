from __future__ import annotations

import pytest

from taskflux.upkeep.recovery import Pace


def test_the_first_batch_begins_at_once() -> None:
    assert Pace(100).start(now=5.0) == 0.0


def test_each_batch_begins_where_the_one_before_ends() -> None:
    pace = Pace(100)
    pace.took(500, now=0.0)
    assert pace.start(now=0.0) == pytest.approx(5.0)
    pace.took(100, now=0.0)
    assert pace.start(now=2.0) == pytest.approx(4.0)


def test_a_pause_is_not_caught_up() -> None:
    pace = Pace(100)
    pace.took(100, now=0.0)
    assert pace.start(now=60.0) == 0.0
    pace.took(100, now=60.0)
    assert pace.start(now=60.0) == pytest.approx(1.0)


def test_an_empty_batch_takes_no_time() -> None:
    pace = Pace(100)
    pace.took(0, now=3.0)
    assert pace.start(now=3.0) == 0.0
