"""The dashboards as files: current, complete, linked, and of metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from charts.generate.dashboards.__main__ import generated
from charts.generate.dashboards.grafana import DEPLOYMENTS
from taskflux.telemetry import metrics
from taskflux.telemetry.metrics import DECLARED
from tests.observability.alerts import rules
from tests.observability.boards import boards, expressions, panels, questions
from tests.observability.promql import filled, labels_used, readings

BOARDS = boards()
UNITS = {"s", "count:/s", "short", "percentunit", "bytes"}
SCRAPED = {"namespace", "release", "pod", "handler"}
"""Labels that the scraping adds: the chart's PodMonitor, or `taskflux dev`."""

LIBRARY = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
"""Metrics of prometheus_client's own."""

NOT_ON_A_DASHBOARD = {
    "taskflux_peer_up": "taskflux dev alone has it",
}


def test_the_files_are_what_the_generator_writes() -> None:
    for path, text in generated().items():
        assert path.read_text("utf-8") == text, f"{path.name} is not current: run `make dashboards`"


def test_there_is_an_overview_one_of_a_handler_and_one_of_stores_and_relay() -> None:
    assert BOARDS.keys() == {"overview", "handler", "stores"}
    assert {board["uid"] for board in BOARDS.values()} == {"taskflux-overview", "taskflux-handler", "taskflux-stores"}


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_says_what_it_shows_in_which_unit_and_from_which_source(name: str) -> None:
    for panel in panels(BOARDS[name]):
        assert panel["title"], panel
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["legendFormat"], f"{panel['title']}: a series without a name"


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_has_a_number_and_a_place_of_its_own(name: str) -> None:
    numbers = [panel["id"] for panel in BOARDS[name]["panels"]]
    assert all(0 < number < 2**31 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    cells: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        covered = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert max(x for x, _ in covered) < 24, panel["title"]
        assert not covered & cells, f"{panel['title']} lies upon another"
        cells |= covered


@pytest.mark.parametrize("name", BOARDS)
def test_every_row_of_panels_is_full(name: str) -> None:
    widths: dict[int, int] = {}
    for panel in BOARDS[name]["panels"]:
        widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert set(widths.values()) == {24}


def test_namespace_release_and_handler_are_chosen_where_they_matter() -> None:
    for name, board in BOARDS.items():
        variables = {each["name"]: each for each in board["templating"]["list"]}
        assert {"datasource", "traces", "namespace", "release"} <= variables.keys()
        assert ("handler" in variables) == (name == "handler")
        for each in ("namespace", "release"):  # under taskflux dev there is neither: everything is looked at
            assert variables[each]["allValue"] == ".*"
            assert variables[each]["current"]["value"] == "$__all"
        used = set(re.findall(r"\$\{?(\w+)", json.dumps([panel["targets"] for panel in panels(board)])))
        assert used - {"__rate_interval"} <= variables.keys()
    for question in questions():
        chosen = question.expr.count('namespace=~"$namespace",release=~"$release"')
        assert chosen == len(readings(filled(question.expr))), f"{question} looks beyond what is chosen"
        if question.board == "handler" and "annotation" not in question.panel:
            assert 'type=~"$handler"' in question.expr, f"{question} is not of the handler"


def test_they_link_to_each_other_and_to_the_traces_of_the_same_time() -> None:
    for board in BOARDS.values():
        others, traces = board["links"]
        assert others["type"] == "dashboards"
        assert others["tags"] == board["tags"] == ["taskflux"]
        assert others["includeVars"]
        assert others["keepTime"]
        address = urlsplit(traces["url"])
        assert address.path == "/explore"
        (pane,) = json.loads(parse_qs(address.query)["panes"][0]).values()
        assert pane["range"] == {"from": "${__from}", "to": "${__to}"}
        assert pane["datasource"] == pane["queries"][0]["datasource"]["uid"] == "${traces}"
        assert '{resource.service.namespace="taskflux"' in pane["queries"][0]["query"]


def test_a_series_of_a_type_leads_to_its_handler() -> None:
    linked = 0
    for name in ("overview", "stores"):
        for panel in panels(BOARDS[name]):
            if all("{{type}}" in target["legendFormat"] for target in panel["targets"]):
                (link,) = panel["fieldConfig"]["defaults"]["links"]
                assert link["url"].startswith(f"/d/{BOARDS['handler']['uid']}?var-handler=${{__field.labels.type}}&")
                linked += 1
    assert linked >= 6


def test_deployments_are_marked() -> None:
    for board in BOARDS.values():
        (annotation,) = board["annotations"]["list"]
        assert annotation["enable"]
        assert annotation["target"]["expr"] == annotation["expr"] == DEPLOYMENTS
        assert "{{version}}" in annotation["titleFormat"]


def test_exemplars_are_asked_for_once_of_each_histogram_that_has_them() -> None:
    for board in BOARDS.values():
        for panel in panels(board):
            if panel["type"] == "timeseries":
                asking = [target for target in panel["targets"] if target.get("exemplar")]
                having = {name for name in _histograms(panel["targets"]) if DECLARED[name].exemplars}
                assert sorted(_histograms(asking)) == sorted(having), panel["title"]
                assert len(asking) == len(having), panel["title"]


def test_times_at_a_percentile_stand_on_powers_of_ten_and_nothing_else_does() -> None:
    for board in BOARDS.values():
        for panel in panels(board):
            if panel["type"] == "timeseries":
                defaults = panel["fieldConfig"]["defaults"]
                by_ten = defaults["custom"].get("scaleDistribution") == {"type": "log", "log": 10}
                assert by_ten == any("histogram_quantile" in each["expr"] for each in panel["targets"]), panel["title"]
                assert by_ten == ("min" not in defaults), panel["title"]


def _histograms(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that are read, once for each query that reads them."""
    return [name for each in targets for name in set(re.findall(r"(taskflux_\w+)_bucket", each["expr"]))]


def test_panels_and_alerts_read_metrics_that_are_declared_by_labels_that_they_have() -> None:
    asked = expressions() | {name: rule["expr"] for name, rule in rules().items()}
    for what, expr in asked.items():
        metrics_read = {declared_name(reading.metric) for reading in readings(expr)}
        for reading in readings(expr):
            name = declared_name(reading.metric)
            if name in LIBRARY:
                continue
            assert name in DECLARED, f"{what}: {reading.metric} is not declared"
            has = {label.name: label for label in DECLARED[name].labels}
            for label, operator, value in reading.matched:
                assert label in SCRAPED | {"le"} | has.keys(), f"{what}: {reading.metric} has no label {label}"
                if label in has and has[label].values and not has[label].description:
                    for each in value.split("|"):
                        assert each in has[label].values, f"{what}: {label}{operator}{each} is never so"
        known = {label.name for name in metrics_read - LIBRARY for label in DECLARED[name].labels}
        assert labels_used(expr) <= known | SCRAPED | {"le"}, what


def test_every_declared_metric_is_shown_somewhere() -> None:
    shown = {declared_name(reading.metric) for expr in expressions().values() for reading in readings(expr)}
    assert DECLARED.keys() - shown == NOT_ON_A_DASHBOARD.keys()


def declared_name(metric: str) -> str:
    """A histogram's series by its own name."""
    bare = re.sub(r"_(bucket|sum|count)$", "", metric)
    return bare if bare in DECLARED and DECLARED[bare].kind == "histogram" else metric


def test_an_undeclared_metric_is_detected() -> None:
    assert declared_name("taskflux_attempts_totl") not in DECLARED
    assert declared_name("taskflux_wait_seconds_bucket") == metrics.WAITED.declared.name
