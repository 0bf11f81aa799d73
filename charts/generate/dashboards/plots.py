"""What a plot shows, apart from how Grafana draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from taskflux.telemetry.metrics import DECLARED

SELECTED: Final = 'namespace=~"$namespace",release=~"$release"'
"""The matchers of every selector; under `taskflux dev` neither label is there, and `.*` matches that too."""


class Kind(Enum):
    """How a plot looks."""

    NUMBER = "number"
    LINES = "lines"
    TIMES = "times"  # each power of ten as high as the next: milliseconds are seen beside an outage's minutes
    STACKED = "stacked"
    STEPS = "steps"  # states over time: nothing in between is true
    HEATMAP = "heatmap"


@dataclass(frozen=True, slots=True)
class Query:
    """A question to Prometheus. `legend` names a series by its labels, as in Grafana: `{{type}}`."""

    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """One panel.

    Args:
        unit: one of Grafana's: `s`, `reqps`, `short`, `percentunit`, `bytes`, …
        width: of 24 columns.
        alarming: from this value on it is shown in red; `warning` likewise in orange.
        good_above: the other way round: red below this value.
        states: what a value is called.
        colours: pattern of a series' name → its colour, where a name means good or bad.
        nothing: what an empty panel says, where emptiness is good news or has a reason.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = Kind.LINES
    width: int = 12
    height: int = 9
    warning: float | None = None
    alarming: float | None = None
    good_above: float | None = None
    largest: float | None = None
    states: tuple[tuple[str, str], ...] = ()
    colours: tuple[tuple[str, str], ...] = ()
    nothing: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Plots under one heading."""

    title: str
    plots: tuple[Plot, ...]


OUTCOMES: Final = (
    ("^(.* )?succeeded$", "green"),
    ("^(.* )?(retry|Transient)$", "yellow"),
    ("^(.* )?(handed-back|Unavailable)$", "blue"),
    ("^(.* )?(held|Ambiguous)$", "purple"),
    ("^(.* )?(died|crashed|Misconfigured)$", "red"),
    ("^(.* )?(expired|Permanent)$", "dark-red"),
)
"""The colours of what becomes of an attempt or a call."""

STATUSES: Final = (
    ("^2..$", "green"),
    ("^3..$", "blue"),
    ("^4..$", "yellow"),
    ("^5..$", "red"),
    ("^aborted$", "purple"),
)
"""The colours of HTTP's answers."""


def selector(metric: str, *matchers: str) -> str:
    """`metric` of the releases that are looked at, and further matchers."""
    return f"{metric}{{{','.join((SELECTED, *matchers))}}}"


def rate(metric: str, *matchers: str) -> str:
    """A counter's rate, series by series."""
    return f"rate({selector(metric, *matchers)}[$__rate_interval])"


def per_second(metric: str, by: str, *matchers: str) -> str:
    """A counter's rate, summed up by labels."""
    return f"sum by ({by}) ({rate(metric, *matchers)})"


def happening(metric: str, by: str, *matchers: str) -> str:
    """The same of what happens at all: most errors' counters stand at zero, and would fill the legend."""
    return f"{per_second(metric, by, *matchers)} > 0"


def quantile(share: float, histogram: str, by: str = "", *matchers: str) -> str:
    """A quantile of a histogram over all processes."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {per_second(f'{histogram}_bucket', labels, *matchers)})"


PERCENTILES: Final = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
WITH_TRACES: Final = frozenset(name for name, declared in DECLARED.items() if declared.exemplars)
"""The histograms whose observations name a trace: Grafana shows them as points that lead there."""


def percentiles(histogram: str, *matchers: str) -> tuple[Query, ...]:
    """Its median, 95th and 99th percentile."""
    return at_percentiles(histogram, lambda share: quantile(share, histogram, "", *matchers))


def at_percentiles(histogram: str, expr: Callable[[float], str]) -> tuple[Query, ...]:
    """What `expr` says of `histogram` at these shares; its exemplars, the same for each, are asked for once."""
    points = "p99" if histogram in WITH_TRACES else None
    return tuple(Query(expr(share), name, exemplars=name == points) for share, name in PERCENTILES)


def heat(histogram: str, *matchers: str) -> Query:
    """A histogram's buckets over time."""
    buckets = selector(f"{histogram}_bucket", *matchers)
    return Query(f"sum by (le) (increase({buckets}[$__rate_interval]))", "{{le}}")


def average(histogram: str, by: str, *matchers: str) -> str:
    """The mean of what a histogram counts."""
    return f"{per_second(f'{histogram}_sum', by, *matchers)} / {per_second(f'{histogram}_count', by, *matchers)}"


def led(metric: str, by: str, *matchers: str) -> str:
    """A figure that the leading relay measures for all: at a change of leaders two may show it for a moment."""
    return f"max by ({by}) ({selector(metric, *matchers)})"
