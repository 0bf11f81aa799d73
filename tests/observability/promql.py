"""What expressions of dashboards and alerts read, by the grammar of PromQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser
from promql_parser import AggregateExpr, BinaryExpr, Call, MatrixSelector, ParenExpr, SubqueryExpr, UnaryExpr
from promql_parser import VectorSelector as Selector


@dataclass(frozen=True)
class Reading:
    """One selector of an expression: the metric as Prometheus stores it, and the labels that it is matched by."""

    metric: str
    matched: tuple[tuple[str, str, str], ...]
    """Label, operator, value."""

    @property
    def selector(self) -> str:
        """As PromQL."""
        matchers = ",".join(f'{name}{operator}"{value}"' for name, operator, value in self.matched)
        return f"{self.metric}{{{matchers}}}"


def filled(expr: str, *, window: str = "1m", handler: str = ".*") -> str:
    """`expr` of a panel with its variables filled in, as Grafana does it."""
    for name, value in {"$__rate_interval": window, "$namespace": ".*", "$release": ".*", "$handler": handler}.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"a variable that is not known: {expr}"
    return expr


def readings(expr: str) -> list[Reading]:
    """The selectors in `expr`, in order. Raises ValueError if it is not PromQL."""
    return [_reading(node) for node in _nodes(promql_parser.parse(expr)) if isinstance(node, Selector)]


def labels_used(expr: str) -> set[str]:
    """Every label that `expr` groups, joins or matches by."""
    used = {name for reading in readings(expr) for name, _, _ in reading.matched}
    for node in _nodes(promql_parser.parse(expr)):
        if isinstance(node, AggregateExpr) and node.modifier is not None:
            used |= set(node.modifier.labels)
        if isinstance(node, BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            used |= set(node.modifier.matching.labels)
    return used


def _reading(selector: Any) -> Reading:
    matched = tuple((each.name, _OPERATORS[str(each.op)], each.value) for each in selector.matchers.matchers)
    return Reading(selector.name, matched)


_OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    match node:
        case MatrixSelector():
            yield from _nodes(node.vector_selector)
        case Call():
            for argument in node.args:
                yield from _nodes(argument)
        case AggregateExpr() | ParenExpr() | UnaryExpr() | SubqueryExpr():
            yield from _nodes(node.expr)
        case BinaryExpr():
            yield from _nodes(node.lhs)
            yield from _nodes(node.rhs)
