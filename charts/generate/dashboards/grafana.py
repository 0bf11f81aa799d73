"""Rows of plots as a Grafana dashboard: its variables, links and annotations, and a number for every panel."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from charts.generate.dashboards.panels import PROMETHEUS, panel
from charts.generate.dashboards.plots import SELECTED, Row

TAG: Final = "taskflux"
HANDLER_UID: Final = "taskflux-handler"

_BUILD: Final = f"taskflux_build_info{{{SELECTED}}}"
DEPLOYMENTS: Final = (
    f"count by (version) ({_BUILD}) unless count by (version) ({_BUILD} offset 1m) and on () count({_BUILD} offset 1m)"
)
"""A version that was not there a minute ago, where something was: Grafana looks once a minute, and so sees it once."""


def board(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    variables: Sequence[Any] = (),
    traces: str = '{resource.service.namespace="taskflux"}',
) -> dict[str, Any]:
    """A dashboard of these rows, with the shared variables and `variables` of its own.

    `traces` is what its link to the traces looks for, in TraceQL.
    """
    builder = _empty(title, traces).uid(uid).description(description)
    for variable in variables:
        builder = builder.with_variable(variable)
    for row in rows:
        builder = builder.with_row(dashboard.Row(row.title))
        for plot in row.plots:
            builder = builder.with_panel(panel(plot))
    made: dict[str, Any] = json.loads(json.dumps(builder.build(), cls=JSONEncoder))
    _bring_up_to_date(made)
    _number(made["panels"])
    _name_deployments(made["annotations"]["list"][0])
    if uid != HANDLER_UID:
        _link_to_handlers(made["panels"])
    return made


def _empty(title: str, traces: str) -> Any:
    """What all dashboards share: the variables for the place, the links, the marks of deployments."""
    return (
        dashboard.Dashboard(title)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Metrics").type("prometheus"))
        .with_variable(dashboard.DatasourceVariable("traces").label("Traces").type("tempo"))
        .with_variable(_many("namespace", "Namespace", "label_values(taskflux_build_info, namespace)"))
        .with_variable(
            _many("release", "Release", 'label_values(taskflux_build_info{namespace=~"$namespace"}, release)')
        )
        .link(
            dashboard.DashboardLink("TaskFlux")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .link(
            dashboard.DashboardLink("Traces")
            .type(models.DashboardLinkType.LINK)
            .url(_explore(traces))
            .tooltip("What the same processes traced over the same time")
            .target_blank(True)
        )
        .annotation(
            dashboard.AnnotationQuery()
            .name("Deployments")
            .datasource(PROMETHEUS)
            .enable(True)
            .icon_color("blue")
            .expr(DEPLOYMENTS)
        )
    )


def handler_chooser() -> Any:
    """The variable of the one handler that is looked at, by the type of its tasks: those at zero are there, too."""
    query = f"label_values(taskflux_workers{{{SELECTED}}}, type)"
    return _chosen("handler", "Handler", query).multi(False).include_all(False)


def _many(name: str, label: str, query: str) -> Any:
    """Several may be chosen, and all are at first."""
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    return _chosen(name, label, query).multi(True).include_all(True).all_value(".*").current(everything)


def _chosen(name: str, label: str, query: str) -> Any:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def _explore(traces: str) -> str:
    """An exploration of the traces, opened over the dashboard's time; Grafana fills in `${…}`."""
    tempo = {"type": "tempo", "uid": "${traces}"}
    look = {"refId": "A", "datasource": tempo, "queryType": "traceql", "query": traces, "limit": 50}
    pane = {
        "datasource": "${traces}",
        "queries": [look],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    panes = quote(json.dumps({"taskflux": pane}, separators=(",", ":")))
    return "/explore?schemaVersion=1&panes=" + re.sub(r"%24%7B(\w+)%7D", r"${\1}", panes)


def _bring_up_to_date(made: dict[str, Any]) -> None:
    """Leave out, or say anew, what the library writes and today's schema no longer knows."""
    del made["style"]
    for variable in made["templating"]["list"]:
        for name in ("auto", "auto_count", "auto_min", "id"):
            del variable[name]
    for each in made["panels"]:
        if each["type"] == "heatmap":
            each["options"]["tooltip"] = {"mode": "single", "yHistogram": True, "showColorScale": True}


def _number(panels: list[dict[str, Any]]) -> None:
    """Give each an id that stays when others come and go."""
    row = ""
    for each in panels:
        row = each["title"] if each["type"] == "row" else row
        each["id"] = zlib.crc32(f"{row}/{each['title'] if each['type'] != 'row' else ''}".encode()) % 1_000_000


def _name_deployments(annotation: dict[str, Any]) -> None:
    """Say the rest of it in the data source's own fields, where old Grafanas and where new ones look for it."""
    annotation |= {"titleFormat": "TaskFlux {{version}}", "textFormat": "Version {{version}} began", "step": "60s"}
    annotation["target"] = {"refId": "Deployments", "expr": annotation["expr"], "interval": "60s"}


def _link_to_handlers(panels: list[dict[str, Any]]) -> None:
    """From each series that is a type's to that type's dashboard."""
    kept = "&".join(f"${{{name}:queryparam}}" for name in ("datasource", "traces", "namespace", "release"))
    url = f"/d/{HANDLER_UID}?var-handler=${{__field.labels.type}}&{kept}&${{__url_time_range}}"
    for each in _by_type(panels):
        each["fieldConfig"]["defaults"]["links"] = [{"title": "Handler ${__field.labels.type}", "url": url}]


def _by_type(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for each in panels:
        legends = [target.get("legendFormat", "") for target in each.get("targets", [])]
        if legends and all("{{type}}" in legend for legend in legends):
            yield each
