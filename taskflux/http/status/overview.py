"""The overview's plots, as this process and its peers have seen them: the queries of the Grafana dashboard, asked of a
history of their own.

Every look evaluates each query once and keeps the answer, so that the page costs nothing to ask for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from taskflux.http.status.history import History, Labels
from taskflux.http.status.promql import evaluate, names_in

log = logging.getLogger(__name__)

EVERY: Final = 5.0
"""Seconds between two looks."""

KEPT: Final = 1800.0
"""Seconds that answers are kept."""

SHORTEST: Final = 60.0
"""Seconds that a plot shows at least."""

_LABEL: Final = re.compile(r"\{\{(\w+)\}\}")


@cache
def rows() -> Sequence[Mapping[str, Any]]:
    """The rows of plots, as the dashboards' generator writes them."""
    text = files("taskflux.http.status").joinpath("overview.json").read_text("utf-8")
    found: Sequence[Mapping[str, Any]] = json.loads(text)
    return found


class Overview:
    """Looks at the metrics every few seconds; answers with what every plot shows.

    Args:
        read: the metrics in Prometheus's text format.
    """

    def __init__(self, read: Callable[[], Awaitable[str]]) -> None:
        self._read = read
        self._queries = [query["expr"] for row in rows() for plot in row["plots"] for query in plot["queries"]]
        self._history = History({name for expr in self._queries for name in names_in(expr)})
        self._answers: dict[str, dict[Labels, deque[tuple[float, float]]]] = {expr: {} for expr in self._queries}
        self._first = math.inf
        self._last = 0.0

    async def keep_looking(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                text = await self._read()
                # Some hundred milliseconds of work a minute, which the loop shall not stand still for.
                await asyncio.to_thread(self.look, text, time.time())
            except ValueError as error:
                log.warning("the metrics could not be read", extra={"error": type(error).__name__})
            await asyncio.sleep(EVERY)

    def look(self, text: str, moment: float) -> None:
        """Note what `text` says at `moment` (Unix time, seconds)."""
        self._history.add(text, moment)
        for expr, answers in self._answers.items():
            for labels, value in evaluate(expr, self._history, moment).items():
                if math.isfinite(value):
                    answers.setdefault(labels, deque()).append((moment, value))
            for labels, points in list(answers.items()):
                while points and points[0][0] < moment - KEPT:
                    points.popleft()
                if not points:
                    del answers[labels]
        self._first, self._last = min(self._first, moment), moment

    def shown(self, seconds: float) -> Mapping[str, Any]:
        """What the page draws: the plots, each with its series over the last `seconds`."""
        # The first minutes fill the plots, too.
        since = min(max(self._last - seconds, self._first), self._last - SHORTEST)
        return {
            "from": since,
            "to": self._last,
            "every": EVERY,
            "rows": [
                {"title": row["title"], "plots": [self._plot(plot, since) for plot in row["plots"]]} for row in rows()
            ],
        }

    def _plot(self, plot: Mapping[str, Any], since: float) -> Mapping[str, Any]:
        series = [
            {
                "name": _named(query.get("legend", ""), dict(labels)),
                "points": [point for point in points if point[0] >= since],
            }
            for query in plot["queries"]
            for labels, points in sorted(self._answers[query["expr"]].copy().items())
        ]
        shown = {name: value for name, value in plot.items() if name != "queries"}
        return shown | {"series": [each for each in series if each["points"]]}


def _named(legend: str, labels: Mapping[str, str]) -> str:
    """A series's name, as Grafana writes it."""
    return _LABEL.sub(lambda found: labels.get(found[1], ""), legend).strip()
