from __future__ import annotations

from taskflux.http.status.history import History
from taskflux.http.status.overview import KEPT, Overview, rows
from taskflux.http.status.promql import evaluate

TEXT = """\
# TYPE taskflux_in_flight gauge
taskflux_in_flight{{handler="process-email",type="email"}} {value}
"""


async def nothing() -> str:
    return ""


def in_flight(overview: Overview, seconds: float = 600) -> list[dict[str, object]]:
    plots = [plot for row in overview.shown(seconds)["rows"] for plot in row["plots"] if plot["title"] == "In flight"]
    series: list[dict[str, object]] = plots[0]["series"]
    return series


def test_every_query_of_the_overview_is_understood() -> None:
    for row in rows():
        for plot in row["plots"]:
            assert plot["description"]
            assert plot["unit"]
            for query in plot["queries"]:
                evaluate(query["expr"], History(()), 0)


def test_a_plot_shows_what_was_seen_under_the_name_of_its_legend() -> None:
    overview = Overview(nothing)
    overview.look(TEXT.format(value=3), 1000)
    overview.look(TEXT.format(value=4), 1005)
    assert in_flight(overview) == [{"name": "email", "points": [(1000, 3), (1005, 4)]}]


def test_a_plot_shows_no_more_than_it_was_asked_for() -> None:
    overview = Overview(nothing)
    for moment in (1000, 1100, 1200):
        overview.look(TEXT.format(value=moment), moment)
    assert in_flight(overview, 100)[0]["points"] == [(1100, 1100), (1200, 1200)]


def test_answers_are_let_go_of_in_the_end() -> None:
    overview = Overview(nothing)
    overview.look(TEXT.format(value=3), 0)
    overview.look("", KEPT + 1)
    assert in_flight(overview, 2 * KEPT) == []
