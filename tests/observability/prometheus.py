"""Queries to a running Prometheus."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx


class NoPromQL(Exception):
    """Prometheus does not take the expression."""


@dataclass(frozen=True)
class Series:
    """Labels, and (time, value) in order."""

    labels: Mapping[str, str]
    values: list[tuple[float, float]]


class Client:
    """Over Prometheus's HTTP API."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=30, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def query(self, expr: str, at: float | None = None) -> list[Series]:
        """An instant query. Raises NoPromQL."""
        answer = await self._ask("query", {"query": expr, **({} if at is None else {"time": str(at)})})
        if answer["resultType"] == "scalar":
            return [Series({}, [_point(answer["result"])])]
        return [Series(each["metric"], [_point(each["value"])]) for each in answer["result"]]

    async def range(self, expr: str, start: float, end: float, step: float = 2.0) -> list[Series]:
        """A range query. Raises NoPromQL."""
        wanted = {"query": expr, "start": str(start), "end": str(end), "step": str(step)}
        answer = await self._ask("query_range", wanted)
        return [Series(each["metric"], [_point(point) for point in each["values"]]) for each in answer["result"]]

    async def value(self, expr: str) -> float:
        """The sum of an instant query's values; 0 when there are none."""
        return sum(value for series in await self.query(expr) for _, value in series.values if not math.isnan(value))

    async def until(self, what: str, expr: str, holds: Callable[[float], bool], patience: float = 120.0) -> float:
        """Wait until the value of `expr` is as wanted; the value."""
        deadline = time.monotonic() + patience
        while not holds(value := await self.value(expr)):
            assert time.monotonic() < deadline, f"{what} did not come within {patience:.0f} s; {expr} is {value}"
            await asyncio.sleep(0.5)
        return value

    async def rules(self) -> list[dict[str, Any]]:
        """The rules, with their health."""
        answer = await self._ask("rules", {})
        return [rule for group in answer["groups"] for rule in group["rules"]]

    async def fired(self, start: float, end: float) -> set[str]:
        """The alerts that fired at any moment of that time."""
        found = await self.range('ALERTS{alertstate="firing"}', start, end, step=1.0)
        return {series.labels["alertname"] for series in found}

    async def _ask(self, what: str, wanted: Mapping[str, str]) -> Any:
        answer = await self._http.get(f"/{what}", params=dict(wanted))
        document = answer.json()
        if document["status"] != "success":
            raise NoPromQL(f"{document.get('errorType')}: {document.get('error')} ({dict(wanted)})")
        return document["data"]


def _point(pair: list[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
