"""The application over types and tasks that stand in memory: for everything that is decided before the store."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from starlette.applications import Starlette

from taskflux.http.app import create_app
from taskflux.http.registry import TypeRegistry
from taskflux.http.services import Limits, Services
from taskflux.store.errors import StoreError
from taskflux.tasks.submission import Accepted, KeyReused, Submission, TaskType
from taskflux.telemetry import instruments, metrics

NOW = datetime(2030, 1, 1, tzinfo=UTC)

EMAIL_SCHEMA = {
    "type": "object",
    "properties": {
        "to": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "subject": {"type": "string", "maxLength": 100},
        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
        "attachments": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        },
    },
    "required": ["to", "subject"],
    "additionalProperties": False,
}
TYPES = {
    "email": TaskType("email", json.dumps(EMAIL_SCHEMA), 6, "resend", "smtp"),
    "simulated": TaskType("simulated", "{}", 8, "resend", None),
}


class Source:
    """Registered types; `trouble` is raised instead while it is set, `gate` holds the answer back."""

    def __init__(self, types: Mapping[str, TaskType] = TYPES) -> None:
        self.types = dict(types)
        self.trouble: StoreError | None = None
        self.asked = 0
        self.looks = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.gate.set()

    async def all(self) -> Mapping[str, TaskType]:
        self.asked += 1
        self.looks.release()
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        return dict(self.types)


class MemoryIntake:
    """Keeps what it accepts; `trouble` is raised instead while it is set, `gate` holds acceptance back."""

    def __init__(self) -> None:
        self.accepted: list[Submission] = []
        self.arrived = asyncio.Event()
        self.keys: dict[str, tuple[bytes, Accepted]] = {}
        self.trouble: BaseException | None = None
        self.fail_from: int | None = None
        self.in_flight = 0
        self.most_in_flight = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def accept(self, submission: Submission) -> Accepted | KeyReused:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
        finally:
            self.in_flight -= 1
        if self.trouble is not None and len(self.accepted) >= (self.fail_from or 0):
            raise self.trouble
        key = submission.idempotency
        if key is not None and key.key in self.keys:
            digest, first = self.keys[key.key]
            if digest != key.digest:
                return KeyReused(key.key)
            return Accepted(first.id, first.type, first.created_at, repeated=True)
        accepted = Accepted(submission.id, submission.type, NOW)
        if key is not None:
            self.keys[key.key] = (key.digest, accepted)
        self.accepted.append(submission)
        self.arrived.set()
        return accepted


class MemoryReader:
    def __init__(self) -> None:
        self.rows: dict[UUID, Mapping[str, Any]] = {}

    async def get(self, task: UUID, tenant: str) -> Mapping[str, Any] | None:
        return self.rows.get(task)


def counted(counter: instruments.Counter) -> Counter[tuple[str, ...]]:
    """A counter's labels → what it has counted."""
    (family,) = counter.collect()
    return Counter({tuple(sample.labels.values()): int(sample.value) for sample in family.samples})


class Fixture:
    """An application and everything it stands on."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.source = Source()
        self.intake = MemoryIntake()
        self.reader = MemoryReader()
        self._before = counted(metrics.SUBMITTED)
        self.ready = True
        self.registry = TypeRegistry(self.source)
        self.limits = limits or Limits(max_body_bytes=10_000, max_item_bytes=1_000)
        self.app: Starlette = create_app(
            Services(
                intake=self.intake,
                reader=self.reader,
                registry=self.registry,
                metrics=self._metrics,
                started=lambda: self.ready,
                limits=self.limits,
                now=lambda: NOW,
            )
        )
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://taskflux")

    async def _metrics(self, accept: str) -> tuple[bytes, str]:
        return b"taskflux_submitted_total 1\n", "text/plain; version=0.0.4; charset=utf-8"

    @property
    def submitted(self) -> dict[tuple[str, ...], int]:
        """Type and outcome → submissions that were counted since this was made."""
        return dict(counted(metrics.SUBMITTED) - self._before)

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
