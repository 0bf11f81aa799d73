from __future__ import annotations

from taskflux.http.status.history import LOOKBACK, History


def text(value: float, name: str = "taskflux_in_flight", labels: str = '{type="email"}') -> str:
    return f"# TYPE {name} gauge\n{name}{labels} {value}\n"


def test_a_series_has_the_value_that_was_read_last() -> None:
    history = History({"taskflux_in_flight"})
    history.add(text(1), 100)
    history.add(text(2), 105)
    (series,) = history.select("taskflux_in_flight")
    assert [series.at(moment) for moment in (99, 100, 104.9, 105, 106)] == [None, 1, 1, 2, 2]


def test_other_metrics_are_not_kept() -> None:
    history = History({"taskflux_lag"})
    history.add(text(1), 100)
    assert not list(history.select("taskflux_in_flight"))


def test_a_series_that_is_exposed_no_more_has_ended() -> None:
    history = History({"taskflux_in_flight"})
    history.add(text(1), 100)
    history.add(text(1, labels='{type="sms"}'), 105)
    values = {series.labels["type"]: series.at(106) for series in history.select("taskflux_in_flight")}
    assert values == {"email": None, "sms": 1}


def test_a_value_is_current_for_as_long_as_prometheus_takes_it_to_be() -> None:
    history = History({"taskflux_in_flight"})
    history.add(text(1), 100)
    (series,) = history.select("taskflux_in_flight")
    assert series.at(100 + LOOKBACK - 1) == 1
    assert series.at(100 + LOOKBACK) is None


def test_what_is_old_is_let_go_of() -> None:
    history = History({"taskflux_in_flight"}, seconds=60)
    for moment in range(0, 600, 5):
        history.add(text(moment), moment)
    (series,) = history.select("taskflux_in_flight")
    assert series.times[0] == 535
    assert len(series.times) == len(series.values) == 13
