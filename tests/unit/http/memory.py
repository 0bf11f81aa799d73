"""The application over types and tasks in memory: for everything that is decided before the store."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

import httpx
from starlette.applications import Starlette

from taskflux.http.access import Access
from taskflux.http.app import create_app
from taskflux.http.dead_letters import DeadLetterRoutes
from taskflux.http.requests import Requests
from taskflux.http.submissions import Limits, Submissions
from taskflux.http.task_types import TypeRegistry
from taskflux.http.tasks import TaskRoutes
from taskflux.telemetry import instruments, metrics
from tests.keys import OPEN
from tests.unit.http.stores import (
    NOW,
    Clock,
    MemoryIntake,
    MemoryLetters,
    MemoryTasks,
    Source,
)


def counted(counter: instruments.Counter) -> Counter[tuple[str, ...]]:
    """A counter's labels → what it has counted."""
    (family,) = counter.collect()
    return Counter({tuple(sample.labels.values()): int(sample.value) for sample in family.samples})


class Fixture:
    """An application and everything it stands on."""

    def __init__(self, limits: Limits | None = None, access: Access = OPEN) -> None:
        self.access = access
        self.source = Source()
        self.intake = MemoryIntake()
        self.tasks = MemoryTasks()
        self._before = counted(metrics.SUBMITTED), counted(metrics.REPLAYED)
        self.ready = True
        self.open_circuits: dict[str, str] = {}
        self.clock = Clock()
        self.registry = TypeRegistry(self.source, clock=self.clock, sleep=self.clock.sleep)
        self.letters = MemoryLetters()
        self.limits = limits or Limits(max_body_bytes=10_000, max_item_bytes=1_000)
        submissions = Submissions(self.intake, self.registry, self.limits, now=lambda: NOW)
        self.app: Starlette = create_app(
            submissions,
            TaskRoutes(self.tasks, None, self.open_circuits.get),
            DeadLetterRoutes(self.letters, submissions, "shop-"),
            None,
            started=lambda: self.ready,
            exposition=self._metrics,
            access=access,
        )
        transport = httpx.ASGITransport(Requests(self.app), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://taskflux")

    async def _metrics(self, accept: str) -> tuple[bytes, str]:
        return b"taskflux_submitted_total 1\n", "text/plain; version=0.0.4; charset=utf-8"

    @property
    def submitted(self) -> dict[tuple[str, ...], int]:
        """Type and outcome → submissions that were counted since this was made."""
        return dict(counted(metrics.SUBMITTED) - self._before[0])

    @property
    def replayed(self) -> dict[tuple[str, ...], int]:
        """Error class and how → dead letters that were counted as replayed since this was made."""
        return dict(counted(metrics.REPLAYED) - self._before[1])

    async def replay(self, letter: UUID, **body: Any) -> httpx.Response:
        return await self.client.post(f"/dead-letters/{letter}/replay", json=body)

    async def submit(self, document: object, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post("/tasks", json=document, headers=named)


def problem(response: httpx.Response) -> dict[str, Any]:
    """The problem document that an answer is, checked for what all of them have in common."""
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == response.status_code
    assert document["type"].startswith("/problems/")
    assert document["title"]
    assert document["detail"]
    return document


def bad_fields(response: httpx.Response) -> dict[str, str]:
    """Field → message of a 422."""
    return {error["field"]: error["message"] for error in problem(response)["errors"]}
