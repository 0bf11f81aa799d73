"""The part of PromQL that the overview's panels are written in, over a `History`.

What a panel asks of Prometheus is asked here as it stands; what this does not know is refused, and a test holds every
panel's answer against a real Prometheus's. Rates are extrapolated as Prometheus does it (promql/functions.go).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import promql_parser
from promql_parser import (
    AggregateExpr,
    BinaryExpr,
    Call,
    MatchOp,
    MatrixSelector,
    NumberLiteral,
    ParenExpr,
    VectorSelector,
)

from taskflux.http.status.history import History, Labels, Series
from taskflux.http.status.vectors import NotKnown, Vector, aggregate, binary, unnamed


@cache
def parse(expression: str) -> Any:
    """The expression's tree. Raises ValueError where it is no PromQL."""
    return promql_parser.parse(expression)


def names_in(expression: str) -> set[str]:
    """The metrics that an expression reads."""
    names: set[str] = set()

    def visit(node: Any) -> None:
        match node:
            case VectorSelector():
                names.add(str(node.name))
            case MatrixSelector():
                names.add(str(node.vector_selector.name))
            case Call():
                for argument in node.args:
                    visit(argument)
            case AggregateExpr() | ParenExpr():
                visit(node.expr)
            case BinaryExpr():
                visit(node.lhs)
                visit(node.rhs)

    visit(parse(expression))
    return names


def evaluate(expression: str, history: History, moment: float) -> Vector:
    """The answer of an instant query at `moment` (seconds); a number is a vector without labels.

    Raises:
        NotKnown: the expression uses what is not done here.
    """
    found = _evaluate(parse(expression), history, moment)
    return {(): found} if isinstance(found, float) else found


def _evaluate(node: Any, history: History, moment: float) -> Vector | float:
    match node:
        case NumberLiteral():
            return float(node.val)
        case ParenExpr():
            return _evaluate(node.expr, history, moment)
        case VectorSelector():
            return _instant(node, history, moment)
        case Call():
            return _call(node, history, moment)
        case AggregateExpr():
            return aggregate(node, _vector(node.expr, history, moment))
        case BinaryExpr():
            return binary(node, _evaluate(node.lhs, history, moment), _evaluate(node.rhs, history, moment))
    raise NotKnown(f"{type(node).__name__} in {node}")


def _vector(node: Any, history: History, moment: float) -> Vector:
    found = _evaluate(node, history, moment)
    if isinstance(found, float):
        raise NotKnown(f"a number where a vector is asked for: {node}")
    return found


# Selectors -----------------------------------------------------------------------------------------------------------


def _instant(selector: Any, history: History, moment: float) -> Vector:
    at = moment - (selector.offset.total_seconds() if selector.offset else 0)
    found: Vector = {}
    for series in _matching(selector, history):
        if (value := series.at(at)) is not None:
            found[_labels({"__name__": selector.name, **series.labels})] = value
    return found


def _matching(selector: Any, history: History) -> Iterable[Series]:
    if selector.at is not None:
        raise NotKnown("@ in a selector")
    matchers = selector.matchers.matchers
    for series in history.select(selector.name):
        if all(_matches(matcher, series.labels.get(matcher.name, "")) for matcher in matchers):
            yield series


def _matches(matcher: Any, value: str) -> bool:
    match matcher.op:
        case MatchOp.Equal:
            return value == str(matcher.value)
        case MatchOp.NotEqual:
            return value != str(matcher.value)
        case MatchOp.Re:
            return _pattern(matcher.value).fullmatch(value) is not None
    return _pattern(matcher.value).fullmatch(value) is None


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def _labels(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted((name, value) for name, value in labels.items() if value))


# Functions -----------------------------------------------------------------------------------------------------------


def _call(node: Any, history: History, moment: float) -> Vector | float:
    name, arguments = node.func.name, node.args
    if name in ("rate", "increase"):
        return _rate(arguments[0], history, moment, per_second=name == "rate")
    if name == "vector":
        return {(): _number(arguments[0])}
    if name == "time":
        return moment
    if name == "histogram_quantile":
        return _quantiles(_number(arguments[0]), _vector(arguments[1], history, moment))
    if name in ("clamp_min", "clamp_max"):
        limit, choose = _number(arguments[1]), max if name == "clamp_min" else min
        return {unnamed(labels): choose(value, limit) for labels, value in _items(arguments[0], history, moment)}
    raise NotKnown(f"the function {name}")


def _items(node: Any, history: History, moment: float) -> Iterable[tuple[Labels, float]]:
    return _vector(node, history, moment).items()


def _number(node: Any) -> float:
    if not isinstance(node, NumberLiteral):
        raise NotKnown(f"{node} where a number is asked for")
    return float(node.val)


def _rate(node: Any, history: History, moment: float, *, per_second: bool) -> Vector:
    if not isinstance(node, MatrixSelector):
        raise NotKnown(f"{node} where a range is asked for")
    selector, seconds = node.vector_selector, node.range.total_seconds()
    until = moment - (selector.offset.total_seconds() if selector.offset else 0)
    found: Vector = {}
    for series in _matching(selector, history):
        times, values = series.within(until - seconds, until)
        if len(times) >= 2:
            increase = _extrapolated(times, values, until - seconds, until)
            found[_labels(series.labels)] = increase / seconds if per_second else increase
    return found


def _extrapolated(times: Sequence[float], values: Sequence[float], start: float, end: float) -> float:
    """A counter's increase over the range: what was sampled, stretched to its edges where the series goes on there."""
    increase = values[-1] - values[0] + sum(a for a, b in pairwise(values) if b < a)
    sampled = times[-1] - times[0]
    between = sampled / (len(times) - 1)
    before, after = times[0] - start, end - times[-1]
    if increase > 0 and values[0] >= 0:
        before = min(before, sampled * values[0] / increase)  # a counter was never below zero
    stretch = sampled
    for gap in (before, after):
        stretch += gap if gap < between * 1.1 else between / 2
    return increase * stretch / sampled


def _quantiles(quantile: float, buckets: Vector) -> Vector:
    grouped: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in buckets.items():
        bound = dict(labels).get("le")
        if bound is not None:
            rest = tuple(each for each in labels if each[0] not in ("le", "__name__"))
            grouped.setdefault(rest, []).append((float(bound), count))
    return {labels: _quantile(quantile, sorted(group)) for labels, group in grouped.items()}


def _quantile(quantile: float, buckets: list[tuple[float, float]]) -> float:
    """Linear within the bucket that the quantile falls into."""
    if len(buckets) < 2 or not math.isinf(buckets[-1][0]) or not buckets[-1][1] > 0:
        return math.nan
    rank = quantile * buckets[-1][1]
    place = next((i for i, (_, count) in enumerate(buckets[:-1]) if count >= rank), len(buckets) - 1)
    if place == len(buckets) - 1:
        return buckets[-2][0]
    bound, count = buckets[place]
    below_bound, below = buckets[place - 1] if place else (0.0, 0.0)
    if place == 0 and bound <= 0:
        return bound
    return below_bound + (bound - below_bound) * (rank - below) / (count - below) if count > below else bound
