"""Contestants take turns, so that what else happens on the machine happens to all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from benchmarks.report import Sample

Contestant = Callable[[], Awaitable[Sample]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. `scale` multiplies what a round does (tasks, seconds); `few` are the rounds of a measure
    whose rounds take long. `rows` and `waiting` are tasks that have ended and that wait, where that is measured.
    """

    rounds: int
    few: int
    scale: float
    rows: int = 2_000_000
    waiting: int = 200_000

    def some(self, full: int) -> int:
        """`full`, scaled."""
        return max(1, round(full * self.scale))

    def seconds(self, full: float) -> float:
        """`full`, scaled, and no less than half a second."""
        return max(0.5, full * self.scale)

    def hundreds(self, full: int) -> int:
        """`full`, scaled, as a multiple of a hundred."""
        return max(1, round(full * self.scale / 100)) * 100


FULL = Effort(rounds=5, few=3, scale=1.0)
QUICK = Effort(rounds=1, few=1, scale=0.3)


async def take_turns(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[Sample]]:
    """Each contestant's samples; who begins changes with every round."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(await contestants[name]())
    return samples
