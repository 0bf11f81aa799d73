"""A plot as a panel of Grafana's."""

from __future__ import annotations

from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

from charts.generate.dashboards.plots import Kind, Plot, Query

_UNITS: Final = {"reqps": "count:/s", "ops": "count:/s"}
"""Tasks, records and statements are not requests: Grafana would call them all req/s and ops/s."""

PROMETHEUS: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


def panel(plot: Plot) -> Any:
    """The panel's builder."""
    match plot.kind:
        case Kind.NUMBER:
            made = _number()
        case Kind.HEATMAP:
            made = _heatmap(plot)
        case Kind.STEPS if plot.states:
            made = _states()
        case _:
            made = _lines(plot)
    made = made.title(plot.title).description(plot.description).datasource(PROMETHEUS)
    made = made.unit(_UNITS.get(plot.unit, plot.unit))
    made = made.span(plot.width).height(plot.height)
    if plot.kind is not Kind.HEATMAP:
        made = _scaled(made, plot)
    if plot.nothing:
        made = made.no_value(plot.nothing)
    for pattern, colour in plot.colours:
        fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        made = made.override_by_regexp(pattern, [fixed])
    for place, query in enumerate(plot.queries):
        made = made.with_target(_target(query, "ABCDEFGH"[place], heat=plot.kind is Kind.HEATMAP))
    return made


def _number() -> Any:
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )


def _legend() -> Any:
    """A table, the largest first: it has room for three series, and the others are below its edge."""
    table = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE).show_legend(True)
    table = table.placement(common_models.LegendPlacement.BOTTOM).calcs(["lastNotNull", "max"])
    return table.sort_by("Max").sort_desc(True)


def _tooltip() -> Any:
    options = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    return options.sort(common_models.SortOrder.DESCENDING)


def _lines(plot: Plot) -> Any:
    made = (
        timeseries.Panel()
        .fill_opacity({Kind.STACKED: 25, Kind.TIMES: 0}.get(plot.kind, 8))  # a logarithmic axis has no zero line
        .line_width(1)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(_tooltip())
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    )
    if plot.kind is Kind.TIMES:
        by_ten = common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10)
        made = made.scale_distribution(by_ten)
    else:
        made = made.min(0)
    if plot.unit in _UNITS:
        made = made.axis_soft_max(0.1)  # where nothing happens the axis would go to 100 a second
    if plot.kind is Kind.STACKED:
        made = made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if plot.kind is Kind.STEPS:
        made = made.line_interpolation(common_models.LineInterpolation.STEP_AFTER).decimals(0)
    if plot.warning is not None or plot.alarming is not None:
        dashed = common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED)
        made = made.thresholds_style(dashed)
    return made


def _states() -> Any:
    """Coloured by the states' names: by thresholds, it would say the thresholds instead of them."""
    return (
        statetimeline.Panel()
        .merge_values(True)
        .row_height(0.8)
        .fill_opacity(70)
        .line_width(0)
        .show_value(common_models.VisibilityMode.AUTO)
        .legend(common.VizLegendOptions().show_legend(False))
        .tooltip(_tooltip())
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    )


def _heatmap(plot: Plot) -> Any:
    return (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
            .exponent(0.5)
            .fill("dark-orange")
        )
        .y_axis(heatmap.YAxisConfig().unit(plot.unit))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common_models.HeatmapCellLayout.AUTO))
        .cell_gap(1)
        .hide_legend()
    )


def _scaled(made: Any, plot: Plot) -> Any:
    if plot.largest is not None:  # a line may go beyond it
        made = made.axis_soft_max(plot.largest) if isinstance(made, timeseries.Panel) else made.max(plot.largest)
    if plot.states:
        named = {
            value: models.ValueMappingResult(text=text, color=_colour(plot, float(value)), index=place)
            for place, (value, text) in enumerate(plot.states)
        }
        made = made.mappings([models.ValueMap(options=named)])
    steps = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(_steps(plot))
    return made.thresholds(steps)


def _colour(plot: Plot, value: float) -> str:
    """That of the last step that `value` reaches."""
    return [step.color for step in _steps(plot) if step.value is None or step.value <= value][-1]


def _steps(plot: Plot) -> list[models.Threshold]:
    if plot.good_above is not None:
        return [models.Threshold(None, "red"), models.Threshold(plot.good_above, "green")]
    steps = [models.Threshold(None, "green")]
    if plot.warning is not None:
        steps.append(models.Threshold(plot.warning, "orange"))
    if plot.alarming is not None:
        steps.append(models.Threshold(plot.alarming, "red"))
    return steps


def _target(query: Query, ref: str, *, heat: bool) -> Any:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref).range().datasource(PROMETHEUS)
    if query.legend:
        target = target.legend_format(query.legend)
    if query.exemplars:
        target = target.exemplar(True)
    if heat:
        target = target.format(prometheus_models.PromQueryFormat.HEATMAP)
    return target
