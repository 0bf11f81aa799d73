"""Samples into medians, ratios, a table and JSON: pure but for the clock's noise that it is there to calm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import median
from typing import Any, Final

Sample = Mapping[str, float]
"""One round of one contestant: column → value."""

_GAP: Final = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A figure that is measured; `name` carries its unit. `spread`: its least and greatest value are shown, too."""

    name: str
    digits: int = 0
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One measure: every contestant's samples, one a round, in the order of the rounds.

    `floor` names the contestant that the others are held against in the first column; None: the columns hold the
    comparison themselves.
    """

    key: str
    title: str
    columns: Sequence[Column]
    floor: str | None
    samples: Mapping[str, Sequence[Sample]]
    notes: Sequence[str] = ()
    peers: Sequence[str] = ()
    """Those contestants that are other systems."""

    def medians(self, contestant: str) -> dict[str, float]:
        """Column → median over the rounds."""
        samples = self.samples[contestant]
        return {column.name: median(sample[column.name] for sample in samples) for column in self.columns}

    def ratio(self, contestant: str) -> float | None:
        """The median over the rounds of contestant ÷ floor in the first column; None without a floor."""
        if self.floor is None:
            return None
        name = self.columns[0].name
        pairs = zip(self.samples[contestant], self.samples[self.floor], strict=True)
        return median(sample[name] / floor[name] for sample, floor in pairs)

    def text(self) -> str:
        """The table as it is printed."""
        rounds = len(next(iter(self.samples.values())))
        lines = [f"{self.title} (median of {rounds})" if rounds > 1 else self.title]
        header = ["", *(column.name for column in self.columns), *([] if self.floor is None else ["× floor"])]
        body = [self._row(contestant) for contestant in self.samples]
        lines += lined_up([header, *body])
        return "\n".join([*lines, *(f"{_GAP}{note}" for note in self.notes)])

    def document(self) -> dict[str, Any]:
        """The same for machines, every sample included."""
        return {
            "title": self.title,
            "floor": self.floor,
            "notes": list(self.notes),
            "contestants": {
                name: {
                    "medians": _plain(self.medians(name)),
                    "ratio": self.ratio(name),
                    "samples": list(map(_plain, samples)),
                }
                for name, samples in self.samples.items()
            },
        }

    def _row(self, contestant: str) -> list[str]:
        figures = [self._cell(column, contestant) for column in self.columns]
        ratio = self.ratio(contestant)
        return [contestant, *figures, *([] if ratio is None else [f"{ratio:.2f}"])]

    def _cell(self, column: Column, contestant: str) -> str:
        values = [sample[column.name] for sample in self.samples[contestant]]
        if isnan(values[0]):  # nothing to measure
            return "–"
        middle, *ends = (f"{value:,.{column.digits}f}" for value in (median(values), min(values), max(values)))
        return f"{middle} ({'–'.join(ends)})" if column.spread and len(values) > 1 else middle


def _plain(sample: Sample) -> dict[str, float | None]:
    """As JSON has it."""
    return {name: None if isnan(value) else value for name, value in sample.items()}


def lined_up(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first cell at the left, the others at the right of their column."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(_GAP + _GAP.join(cells))
    return lines


def percentile(values: Sequence[float], share: float) -> float:
    """The least of `values` that `share` (0 to 1) of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
