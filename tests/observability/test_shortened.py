"""The one change that the proof makes to the alerts."""

from __future__ import annotations

from tests.observability.alerts import rules
from tests.observability.promql import readings
from tests.observability.shortened import seconds, shortened


def test_times_are_divided_and_nothing_else() -> None:
    rule = {
        "alert": "A",
        "expr": 'max by (a) (x_seconds{b="c"}) > 60 and rate(y[5m] offset 15m) / z[6h30m] > 0.2 or w > 5',
        "for": "2m",
    }
    assert shortened(rule, 20, 6)["expr"] == (
        'max by (a) (x_seconds{b="c"}) > 3 and rate(y[15000ms] offset 45000ms) / z[1170000ms] > 0.2 or w > 5'
    )
    assert shortened(rule, 20, 6)["for"] == "6000ms"
    assert shortened(rule, 100, 6)["expr"].count("[6000ms]") == 1
    assert seconds("6h30m") == 23_400


def test_every_alert_is_still_the_same_question() -> None:
    for name, rule in rules().items():
        assert readings(shortened(rule, 20, 6)["expr"]) == readings(rule["expr"]), name
        assert shortened(rule, 20, 6)["labels"] == rule["labels"]
