from __future__ import annotations

from taskflux.telemetry.logs import Sampler


def test_below_its_rate_every_line_is_written() -> None:
    sampler = Sampler(3)
    assert [sampler.take("succeeded", second) for second in (0.0, 0.4, 0.8, 1.0, 1.1, 5.0)] == [0] * 6


def test_above_its_rate_lines_are_left_out_until_the_next_second_and_then_told() -> None:
    sampler = Sampler(2)
    assert [sampler.take("succeeded", 10.0 + n / 10) for n in range(5)] == [0, 0, None, None, None]
    assert sampler.take("succeeded", 11.0) == 3
    assert sampler.take("succeeded", 11.1) == 0


def test_what_was_left_out_is_told_by_the_next_line_of_its_kind() -> None:
    sampler = Sampler(1)
    assert [sampler.take(kind, 0.0) for kind in ("succeeded", "retry", "retry")] == [0, None, None]
    assert sampler.take("succeeded", 1.0) == 0
    assert sampler.take("retry", 2.0) == 2


def test_a_rate_of_nothing_leaves_all_of_them_out() -> None:
    assert Sampler(0).take("succeeded", 0.0) is None
