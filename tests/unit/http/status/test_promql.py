"""The reader of PromQL, by figures that are worked out by hand; a real Prometheus is asked in tests/observability."""

from __future__ import annotations

import math

import pytest

from taskflux.http.status.history import History
from taskflux.http.status.promql import evaluate, names_in
from taskflux.http.status.vectors import NotKnown

EXPOSED = """\
# TYPE done counter
done_total{{type="email",outcome="succeeded"}} {succeeded}
done_total{{type="email",outcome="died"}} {died}
done_total{{type="sms",outcome="succeeded"}} {sms}
# TYPE size gauge
size{{type="email",handler="a"}} 3
size{{type="email",handler="b"}} 5
size{{type="sms",handler="a"}} 7
# TYPE took histogram
took_bucket{{le="1"}} {fast}
took_bucket{{le="2"}} {all}
took_bucket{{le="+Inf"}} {all}
"""
NAMES = {"done_total", "size", "took_bucket"}
NOW = 1060.0


@pytest.fixture(scope="module")
def history() -> History:
    """A look every ten seconds for a minute: 2 mails a second succeed, one in ten seconds dies, no SMS."""
    found = History(NAMES)
    for place in range(7):
        text = EXPOSED.format(succeeded=20 * place, died=place, sms=4, fast=10 * place, all=20 * place)
        found.add(text, 1000.0 + 10 * place)
    return found


def answer(history: History, expression: str, at: float = NOW) -> dict[str, float]:
    """Label values, joined, → value."""
    return {
        ",".join(value for _, value in labels): value for labels, value in evaluate(expression, history, at).items()
    }


def test_a_rate_is_what_a_counter_rose_by_each_second(history: History) -> None:
    assert answer(history, 'rate(done_total{outcome="succeeded"}[1m])') == {
        "succeeded,email": pytest.approx(2.0),
        "succeeded,sms": 0,
    }


def test_a_counter_that_began_anew_goes_on_from_zero() -> None:
    found = History({"done_total"})
    for moment, value in ((0, 100), (10, 110), (20, 5), (30, 15)):
        found.add(f"# TYPE done counter\ndone_total {value}\n", moment)
    # 10 + 5 + 10 within 30 of the 40 seconds, stretched by a half step at each edge.
    assert answer(found, "increase(done_total[40s])", 35.0) == {"": pytest.approx(25 * 40 / 30)}


def test_sums_keep_the_labels_that_are_asked_for(history: History) -> None:
    assert answer(history, "sum by (type) (size)") == {"email": 8, "sms": 7}
    assert answer(history, "sum without (type) (size)") == {"a": 10, "b": 5}
    assert answer(history, "max(size)") == {"": 7}


@pytest.mark.parametrize(
    ("matcher", "found"),
    [('type="email"', 2), ('type!="email"', 1), ('type=~"e.*|x"', 2), ('type!~"e.*"', 1), ('release=~".*"', 3)],
)
def test_matchers_choose_series_and_an_absent_label_is_empty(history: History, matcher: str, found: int) -> None:
    assert len(answer(history, f"size{{{matcher}}}")) == found


def test_a_ratio_divides_what_has_the_same_labels(history: History) -> None:
    died = 'sum by (type) (rate(done_total{outcome="died"}[1m]))'
    ended = "sum by (type) (rate(done_total[1m]))"
    assert answer(history, f"{died} / {ended}") == {"email": pytest.approx(0.1 / 2.1)}


def test_a_comparison_filters_or_judges(history: History) -> None:
    assert set(answer(history, "size > 4")) == {"size,b,email", "size,a,sms"}
    assert sorted(answer(history, "size > bool 4").values()) == [0, 1, 1]


def test_nothing_divided_by_nothing_is_no_number(history: History) -> None:
    assert math.isnan(answer(history, "vector(0) / vector(0)")[""])


def test_or_adds_what_is_missing_and_unless_takes_away(history: History) -> None:
    assert answer(history, "sum(nothing) or vector(0)") == {"": 0}
    assert answer(history, "sum(size) or vector(0)") == {"": 15}
    assert answer(history, 'size unless on (type) size{handler="b"}') == {"size,a,sms": 7}


def test_a_quantile_lies_within_its_bucket(history: History) -> None:
    # Half of the observations took up to one second, the others up to two.
    quantile = "histogram_quantile({}, sum by (le) (rate(took_bucket[1m])))"
    assert answer(history, quantile.format(0.75)) == {"": pytest.approx(1.5)}
    assert answer(history, quantile.format(0.25)) == {"": pytest.approx(0.5)}


def test_a_quantile_of_nothing_is_no_number(history: History) -> None:
    found = History({"took_bucket"})
    for moment in (0, 10):
        found.add('# TYPE took histogram\ntook_bucket{le="1"} 0\ntook_bucket{le="+Inf"} 0\n', moment)
    assert math.isnan(answer(found, "histogram_quantile(0.5, rate(took_bucket[1m]))", 10)[""])


def test_the_names_of_an_expression_are_known() -> None:
    assert names_in("sum(rate(a_total[1m])) / (b or vector(0)) > c{x='y'}") == {"a_total", "b", "c"}


@pytest.mark.parametrize(
    "expression", ["deriv(size[1m])", "topk(2, size)", "size @ 5", "size ^ 2", "rate(size)[5m:1m]"]
)
def test_what_is_not_done_here_is_refused(history: History, expression: str) -> None:
    with pytest.raises((NotKnown, ValueError)):
        evaluate(expression, history, NOW)
