"""How metrics are declared, kept, and exposed: as OpenMetrics with exemplars, or as Prometheus's plain text.

One thread, the event loop's, writes series and any may read them: counting takes no lock. The metrics are collectors of
prometheus_client, whose registry and formats expose them together with its own (of the process and of Python). It is
imported when they are first asked for: a process that starts has a task to handle before.
"""

from __future__ import annotations

import gzip
import threading
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, product
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Exemplar

T = TypeVar("T")
_Labels = TypeVar("_Labels", bound="tuple[str, ...]")

LEADER: Final = "relay (leader)"
OTHER: Final = "other"
"""The value of a label for everything that its list does not name."""


class Label(NamedTuple):
    """A label: the values that it may take, and a description of those that no list can name."""

    name: str
    values: tuple[str, ...] = ()
    description: str = ""


class Declared(NamedTuple):
    """A metric as it is exposed: `name` as Prometheus stores it (for a histogram without its suffixes), `by` the
    processes that expose it.
    """

    name: str
    kind: str
    sentence: str
    labels: tuple[Label, ...]
    by: str
    exemplars: bool = False


_off = False


def switch_off() -> None:
    """Count nothing from now on; for a process that has just started."""
    global _off  # one process has one registry
    _off = True


def switched_off() -> bool:
    """Whether nothing is counted here."""
    return _off


# Series ---------------------------------------------------------------------------------------------------------------


class CounterSeries:
    """A count that only increases."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Count `amount` more."""
        self.value += amount

    def shown(self) -> tuple[float]:
        """The arguments for a family of prometheus_client."""
        return (self.value,)


class GaugeSeries:
    """A value that increases and decreases."""

    __slots__ = ("_followed", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._followed: WeakKeyDictionary[Any, Callable[[Any], float]] = WeakKeyDictionary()

    def set(self, value: float) -> None:
        """Set the value."""
        self._value = float(value)

    def follow(self, owner: T, read: Callable[[T], float]) -> None:
        """Add `read(owner)` to the value whenever it is read, for as long as `owner` lives."""
        self._followed[owner] = read

    def shown(self) -> tuple[float]:
        """The arguments for a family of prometheus_client."""
        return (self._value + sum(read(owner) for owner, read in list(self._followed.items())),)


class HistogramSeries:
    """Observations, counted by size."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the upper bounds of the buckets, in order, the last one infinity."""
        self._bounds = bounds
        self._counts = [0] * len(bounds)
        self._sum = 0.0
        self._exemplars: dict[int, tuple[dict[str, str], float, float]] = {}

    def observe(self, amount: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Count one observation; each bucket keeps its last `exemplar` (labels, such as a trace id)."""
        place = bisect_left(self._bounds, amount)
        self._counts[place] += 1
        self._sum += amount
        if exemplar:
            self._exemplars[place] = dict(exemplar), amount, time.time()

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Count many observations at the cost of a few."""
        ordered, counted = sorted(amounts), 0
        for place, bound in enumerate(self._bounds):
            if counted == len(ordered):
                break
            up_to = bisect_right(ordered, bound, counted)
            self._counts[place] += up_to - counted
            counted = up_to
        self._sum += sum(ordered)

    def shown(self) -> tuple[list[Any], float]:
        """The arguments for a family of prometheus_client: each bucket's name, cumulative count and exemplar."""
        buckets = zip(self._bounds, accumulate(self._counts.copy()), strict=True)
        return [(_name(bound), total, self._exemplar(place)) for place, (bound, total) in enumerate(buckets)], self._sum

    def _exemplar(self, place: int) -> Exemplar | None:
        from prometheus_client.samples import Exemplar

        last = self._exemplars.get(place)
        return None if last is None else Exemplar(*last)


class _Nothing:
    """Replaces every series of a process that counts nothing."""

    def inc(self, amount: float = 1) -> None:
        """Not counted."""

    def set(self, value: float) -> None:
        """Not kept."""

    def follow(self, owner: object, read: object) -> None:
        """Not asked."""

    def observe(self, amount: float, exemplar: object = None) -> None:
        """Not counted."""

    def observe_all(self, amounts: Iterable[float]) -> None:
        """Not counted."""


_NOTHING: Final[Any] = _Nothing()

# Metrics --------------------------------------------------------------------------------------------------------------

S = TypeVar("S", CounterSeries, GaugeSeries, HistogramSeries)


class _Metric(Generic[S]):
    """A metric that is registered at its first use: a process exposes only the metrics that it uses."""

    kind: ClassVar[str]

    def __init__(self, name: str, sentence: str, *labels: Label, by: str, exemplars: bool = False) -> None:
        self.declared = Declared(name, self.kind, sentence, labels, by, exemplars)
        self._series: dict[tuple[str, ...], S] = {}

    def labels(self, *values: str) -> S:
        """The series with these labels, in the order of their declaration."""
        if _off:
            return _NOTHING  # type: ignore[no-any-return]
        return self._series.get(values) or self._begin(values)

    def zeros(self, *given: str | Iterable[str]) -> None:
        """Expose series before their first event, so that `rate()` and alerts see it.

        The first labels take the values that are `given` for each; the others take all their declared values, except
        `other`.
        """
        first = [[each] if isinstance(each, str) else each for each in given]
        others = [[value for value in label.values if value != OTHER] for label in self.declared.labels[len(given) :]]
        for values in product(*first, *others):
            self.labels(*values)

    def describe(self) -> Iterator[Metric]:
        """For the registry, which reads the name."""
        yield _family(self.declared)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = _family(self.declared)
        for values, series in self._series.copy().items():
            family.add_metric(values, *series.shown())
        yield family

    def _begin(self, values: tuple[str, ...]) -> S:
        if len(values) != len(self.declared.labels):
            raise ValueError(f"{self.declared.name} has {len(self.declared.labels)} labels, not {len(values)}")
        if not self._series:
            _unregistered.append(self)
        series = self._series[values] = self._new()
        return series

    def _new(self) -> S:
        raise NotImplementedError


class Counter(_Metric[CounterSeries]):
    """A metric that only increases; its name ends in `_total`."""

    kind = "counter"

    def _new(self) -> CounterSeries:
        return CounterSeries()


class Gauge(_Metric[GaugeSeries]):
    """A metric that increases and decreases."""

    kind = "gauge"

    def _new(self) -> GaugeSeries:
        return GaugeSeries()


class Histogram(_Metric[HistogramSeries]):
    """Seconds or numbers, counted by size: `buckets` are their upper bounds, in order, without infinity."""

    kind = "histogram"

    def __init__(
        self, name: str, sentence: str, *labels: Label, buckets: Sequence[float], by: str, exemplars: bool = False
    ) -> None:
        super().__init__(name, sentence, *labels, by=by, exemplars=exemplars)
        self._bounds = (*buckets, inf)

    def _new(self) -> HistogramSeries:
        return HistogramSeries(self._bounds)


class Snapshot:
    """A gauge that is measured as a whole: its series change together, and disappear when measuring stops."""

    def __init__(self, name: str, sentence: str, *labels: Label, by: str = LEADER) -> None:
        self.declared = Declared(name, "gauge", sentence, labels, by)
        self._values: Mapping[Any, float] = {}
        self._shown = False

    def show(self, values: Mapping[_Labels, float]) -> None:
        """Expose these series (label values → value) and no others."""
        self._values = dict(values)
        if not self._shown and not _off:
            self._shown = True
            _unregistered.append(self)

    def clear(self) -> None:
        """Expose none."""
        self._values = {}

    def describe(self) -> Iterator[Metric]:
        """For the registry, which reads the name."""
        yield _family(self.declared)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = _family(self.declared)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        yield family


def _name(bound: float) -> str:
    from prometheus_client.utils import floatToGoString

    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


def _family(declared: Declared) -> Any:
    from prometheus_client import core

    kind = {
        "counter": core.CounterMetricFamily,
        "gauge": core.GaugeMetricFamily,
        "histogram": core.HistogramMetricFamily,
    }[declared.kind]
    return kind(declared.name, declared.sentence, labels=[label.name for label in declared.labels])


_unregistered: deque[Any] = deque()
"""Metrics that were first used since the registry was last asked for."""
_registering: Final = threading.Lock()


def registry() -> CollectorRegistry:
    """The registry of this process, which an application's own metrics are in, too."""
    from prometheus_client import REGISTRY, disable_created_metrics

    with _registering:  # the threads that answer probes ask for it
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter of an application
        while _unregistered:
            REGISTRY.register(_unregistered.popleft())
    return REGISTRY


# Exposition -----------------------------------------------------------------------------------------------------------

OPEN_METRICS: Final = "application/openmetrics-text"
SWITCHED_OFF: Final = b"metrics are switched off: TASKFLUX_METRICS__ENABLED"
_LEVEL: Final = 4
"""Compression level: saving another tenth of the size would take as much time again."""


class Format(NamedTuple):
    """A format of metrics: `encode` writes a registry, `content_type` names it."""

    encode: Callable[[Collector], bytes]
    content_type: str

    @property
    def open_metrics(self) -> bool:
        """Whether it carries exemplars."""
        return self.content_type.startswith(OPEN_METRICS)


def chosen(accept: str) -> Format:
    """The supported format that a scraper prefers; plain text if it names none of them.

    prometheus_client takes the first that it supports; RFC 9110 (12.5.1) requires the weights.
    """
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest

    for media_range in _by_weight(accept):
        essence, *parameters = [part.strip() for part in media_range.split(";")]
        if essence == OPEN_METRICS:
            version = next((each[8:].strip('"') for each in parameters if each.startswith("version=")), "1.0.0")
            if version == "1.0.0":
                return Format(*choose_encoder(media_range))
        elif essence in ("text/plain", "text/*", "*/*"):
            return Format(*choose_encoder(media_range))
    return Format(generate_latest, CONTENT_TYPE_PLAIN_0_0_4)


def shown(accept: str) -> tuple[bytes, str]:
    """All metrics of this process, and their content type."""
    encode, content_type = chosen(accept)
    return encode(registry()), content_type


def packed(body: bytes, content_type: str, accept_encoding: str) -> tuple[bytes, Mapping[str, str]]:
    """`body` as it is sent, compressed if the client accepts that, and its headers."""
    headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
    if any(each.strip().lower() in ("gzip", "*") for each in _by_weight(accept_encoding)):
        return gzip.compress(body, _LEVEL), {**headers, "Content-Encoding": "gzip"}
    return body, headers


def _by_weight(header: str) -> Iterator[str]:
    """The members of a header such as Accept, without their weights, the highest first; those of weight 0 left out."""
    weighted = []
    for member in header.split(","):
        parts = [part.strip() for part in member.split(";")]
        weight = 1.0
        for part in parts[1:]:
            if part.lower().startswith("q="):
                try:
                    weight = float(part[2:])
                except ValueError:
                    weight = 0.0
        if parts[0] and weight > 0:
            weighted.append((weight, ";".join(part for part in parts if not part.lower().startswith("q="))))
    yield from (member for _, member in sorted(weighted, key=lambda each: -each[0]))
