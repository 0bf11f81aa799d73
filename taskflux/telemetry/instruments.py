"""How metrics are declared and kept: prometheus_client's, as cheap as a busy worker needs, and known to a table."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import prometheus_client
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

_Labels = TypeVar("_Labels", bound="tuple[str, ...]")

LEADER: Final = "relay (leader)"


@dataclass(frozen=True, slots=True)
class Label:
    """A label: the values that it may take, and in words those that no list can name."""

    name: str
    values: tuple[str, ...] = ()
    said: str = ""


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric as it is exposed: `by` names the processes that have it."""

    name: str
    kind: str
    sentence: str
    labels: tuple[Label, ...]
    by: str
    exemplars: bool = False


DECLARED: Final[dict[str, Declared]] = {}
"""By the name under which Prometheus stores it (of a histogram without its suffixes)."""

_off = False


def switch_off() -> None:
    """Count nothing from now on; for a process that has just begun."""
    global _off  # one process has one registry
    _off = True


def switched_off() -> bool:
    """Whether nothing is counted here."""
    return _off


class _Nothing:
    """Stands in for every metric of a process that counts nothing."""

    def inc(self, amount: float = 1, exemplar: object = None) -> None:
        """Not counted."""

    def dec(self, amount: float = 1) -> None:
        """Not counted."""

    def set(self, value: float) -> None:
        """Not kept."""

    def observe(self, amount: float, exemplar: object = None) -> None:
        """Not counted."""

    def observe_all(self, amounts: Iterable[float]) -> None:
        """Not counted."""

    def set_function(self, f: object) -> None:
        """Not kept."""


_NOTHING: Final[Any] = _Nothing()


class _Shown:
    """A metric that the registry knows from its first use on: a process shows what it has, and nothing else."""

    _labelnames: Sequence[str]
    _shown = False

    def labels(self, *values: object, **named: object) -> Any:
        """The series with these labels, the only one where there are none: look it up once, if it is used often."""
        if _off:
            return _NOTHING
        if not self._shown:
            self._shown = True
            REGISTRY.register(cast("Collector", self))
        return super().labels(*values, **named) if self._labelnames else self  # type: ignore[misc]


class Counter(_Shown, prometheus_client.Counter):
    """A count that only rises."""


class Gauge(_Shown, prometheus_client.Gauge):
    """A value that rises and falls."""


class Histogram(_Shown, prometheus_client.Histogram):
    """Observations, counted by size. The bucket is found by bisection: the library's looks at one after the other."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count one observation; of each bucket the last `exemplar` (labels, such as a trace id) is kept."""
        self._sum.inc(amount)
        bucket = self._buckets[bisect_left(self._upper_bounds, amount)]
        bucket.inc(1)
        if exemplar:
            bucket.set_exemplar(Exemplar(exemplar, amount, time.time()))

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Count many observations for the price of a few."""
        ordered, counted = sorted(amounts), 0
        for bucket, bound in zip(self._buckets, self._upper_bounds, strict=True):
            if counted == len(ordered):
                break
            up_to = bisect_right(ordered, bound, counted)
            if up_to > counted:
                bucket.inc(up_to - counted)
                counted = up_to
        if ordered:
            self._sum.inc(sum(ordered))


class Snapshot:
    """A gauge that is measured as a whole: its series change all at once, and are gone once nobody measures."""

    def __init__(self, name: str, sentence: str, labels: Sequence[str]) -> None:
        self.name = name
        self.sentence = sentence
        self._labels = tuple(labels)
        self._values: Mapping[Any, float] = {}
        self._shown = False

    def show(self, values: Mapping[_Labels, float]) -> None:
        """Show these series (label values → value) and no others."""
        self._values = dict(values)
        if not self._shown and not _off:
            self._shown = True
            REGISTRY.register(self)

    def clear(self) -> None:
        """Show none."""
        self._values = {}

    def describe(self) -> Iterator[Metric]:
        """For the registry, which asks what it is called."""
        yield GaugeMetricFamily(self.name, self.sentence, labels=self._labels)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = GaugeMetricFamily(self.name, self.sentence, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        yield family


def counter(name: str, sentence: str, *labels: Label, by: str) -> Counter:
    """Declare a counter; it is exposed as `name` with `_total` behind it."""
    _declare(Declared(f"{name}_total", "counter", sentence, labels, by))
    return Counter(name, sentence, [label.name for label in labels], registry=None)


def gauge(name: str, sentence: str, *labels: Label, by: str) -> Gauge:
    """Declare a gauge."""
    _declare(Declared(name, "gauge", sentence, labels, by))
    return Gauge(name, sentence, [label.name for label in labels], registry=None)


def histogram(
    name: str, sentence: str, *labels: Label, buckets: Sequence[float], by: str, exemplars: bool = False
) -> Histogram:
    """Declare a histogram of seconds or numbers."""
    _declare(Declared(name, "histogram", sentence, labels, by, exemplars))
    return Histogram(name, sentence, [label.name for label in labels], registry=None, buckets=buckets)


def snapshot(name: str, sentence: str, *labels: Label, by: str = LEADER) -> Snapshot:
    """Declare a gauge that is measured as a whole."""
    _declare(Declared(name, "gauge", sentence, labels, by))
    return Snapshot(name, sentence, [label.name for label in labels])


def _declare(declared: Declared) -> None:
    DECLARED[declared.name] = declared
