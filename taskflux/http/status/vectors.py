"""What PromQL's aggregations and operators make of vectors, as far as the overview's panels use them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from promql_parser import AggModifierType, LabelModifierType, VectorMatchCardinality

from taskflux.http.status.history import Labels

Vector = dict[Labels, float]


class NotKnown(ValueError):
    """An expression goes beyond what is done here."""


def unnamed(labels: Labels) -> Labels:
    """Without the metric's name, which no longer holds once something was made of its values."""
    return tuple(each for each in labels if each[0] != "__name__")


_AGGREGATES: Final[Mapping[str, Callable[[list[float]], float]]] = {
    "sum": math.fsum,
    "max": max,
    "min": min,
    "count": lambda values: float(len(values)),
    "avg": lambda values: math.fsum(values) / len(values),
}


def aggregate(node: Any, values: Vector) -> Vector:
    """What an AggregateExpr makes of the values of its inner expression."""
    function = _AGGREGATES.get(str(node.op))
    if function is None:
        raise NotKnown(f"the aggregation {node.op}")
    groups: dict[Labels, list[float]] = {}
    for labels, value in values.items():
        groups.setdefault(_kept(node.modifier, labels), []).append(value)
    return {labels: function(group) for labels, group in groups.items()}


def _kept(modifier: Any, labels: Labels) -> Labels:
    if modifier is None:
        return ()
    named = set(modifier.labels)
    if modifier.type == AggModifierType.By:
        return tuple(each for each in labels if each[0] in named)
    return tuple(each for each in labels if each[0] not in named | {"__name__"})


_ARITHMETIC: Final[Mapping[str, Callable[[float, float], float]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else (math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)),
}
_COMPARISON: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


def binary(node: Any, left: Vector | float, right: Vector | float) -> Vector | float:
    """What a BinaryExpr makes of the values of its two sides."""
    symbol, modifier = str(node.op), node.modifier
    if symbol in ("or", "and", "unless"):
        return _set(symbol, modifier, left, right)
    as_bool = modifier is not None and modifier.return_bool
    if isinstance(left, float) and isinstance(right, float):
        result = _apply(symbol, left, right, as_bool=True)
        assert result is not None
        return result
    found: Vector = {}
    for labels, a, b in _pairs(modifier, left, right):
        if (value := _apply(symbol, a, b, as_bool)) is not None:
            found[labels if symbol in _COMPARISON and not as_bool else unnamed(labels)] = value
    return found


def _apply(symbol: str, a: float, b: float, as_bool: bool) -> float | None:
    if symbol in _ARITHMETIC:
        return _ARITHMETIC[symbol](a, b)
    if symbol not in _COMPARISON:
        raise NotKnown(f"the operator {symbol}")
    holds = _COMPARISON[symbol](a, b)
    if as_bool:
        return float(holds)
    return a if holds else None


def _pairs(modifier: Any, left: Vector | float, right: Vector | float) -> Iterable[tuple[Labels, float, float]]:
    if isinstance(left, float):
        assert not isinstance(right, float)
        return [(labels, left, value) for labels, value in right.items()]
    if isinstance(right, float):
        return [(labels, value, right) for labels, value in left.items()]
    if modifier is not None and modifier.card == VectorMatchCardinality.OneToMany:
        raise NotKnown("group_right")
    by_key = {_key(modifier, labels): value for labels, value in right.items()}
    many = modifier is not None and modifier.card == VectorMatchCardinality.ManyToOne
    return [
        (labels if many else _key(modifier, labels), value, by_key[_key(modifier, labels)])
        for labels, value in left.items()
        if _key(modifier, labels) in by_key
    ]


def _key(modifier: Any, labels: Labels) -> Labels:
    matching = modifier.matching if modifier is not None else None
    if matching is None:
        return unnamed(labels)
    named = set(matching.labels)
    if matching.type == LabelModifierType.Include:
        return tuple(each for each in labels if each[0] in named)
    return tuple(each for each in labels if each[0] not in named | {"__name__"})


def _set(symbol: str, modifier: Any, left: Vector | float, right: Vector | float) -> Vector:
    if isinstance(left, float) or isinstance(right, float):
        raise NotKnown(f"{symbol} with a number")
    keys = {_key(modifier, labels) for labels in (left if symbol == "or" else right)}
    if symbol == "or":
        return left | {labels: value for labels, value in right.items() if _key(modifier, labels) not in keys}
    wanted = symbol == "and"
    return {labels: value for labels, value in left.items() if (_key(modifier, labels) in keys) is wanted}
