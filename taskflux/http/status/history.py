"""What a process has seen of its metrics lately: a small store of samples, for the page at `/status` alone."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]
"""Label names and values, sorted by name."""

LOOKBACK: Final = 300.0
"""Seconds that a sample counts as the current one, as in Prometheus; a series that has ended is marked sooner."""


@dataclass(slots=True)
class Series:
    """One metric with one set of labels: times (seconds) and values, in the order of time."""

    labels: Mapping[str, str]
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))
    ended: float | None = None

    def at(self, moment: float) -> float | None:
        """Its value then; None where it had none."""
        if self.ended is not None and moment >= self.ended:
            return None
        place = bisect_right(self.times, moment) - 1
        if place < 0 or moment - self.times[place] >= LOOKBACK:
            return None
        return self.values[place]

    def within(self, after: float, until: float) -> tuple[array[float], array[float]]:
        """Its samples after `after`, up to `until`."""
        first, last = bisect_right(self.times, after), bisect_right(self.times, until)
        return self.times[first:last], self.values[first:last]

    def forget(self, before: float) -> None:
        """Let go of older samples."""
        if (place := bisect_left(self.times, before)) > 0:
            del self.times[:place], self.values[:place]


class History:
    """The samples of some metrics over the last `seconds`."""

    def __init__(self, names: Collection[str], seconds: float = 400.0) -> None:
        self._names = frozenset(names)
        self._seconds = seconds
        self._series: dict[str, dict[Labels, Series]] = {}

    def add(self, text: str, moment: float) -> None:
        """Keep what `text` (Prometheus's text format) says of those metrics, as of `moment` (seconds)."""
        seen: set[tuple[str, Labels]] = set()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name not in self._names:
                    continue
                labels = tuple(sorted(sample.labels.items()))
                series = self._series.setdefault(sample.name, {}).get(labels)
                if series is None or series.ended is not None:
                    series = self._series[sample.name][labels] = Series(dict(labels))
                series.times.append(moment)
                series.values.append(float(sample.value))
                seen.add((sample.name, labels))
        self._end_others(seen, moment)

    def select(self, name: str) -> Iterator[Series]:
        """All series of a metric."""
        yield from self._series.get(name, {}).values()

    def _end_others(self, seen: set[tuple[str, Labels]], moment: float) -> None:
        oldest = moment - self._seconds
        for name, all_series in self._series.items():
            for labels, series in list(all_series.items()):
                series.forget(oldest)
                if not series.times:
                    del all_series[labels]
                elif (name, labels) not in seen and series.ended is None:
                    series.ended = moment
