"""Dead letters that stand in memory, behind the application's routes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
from uuid_utils.compat import uuid7

from taskflux.http.app import create_app
from taskflux.http.registry import TypeRegistry
from taskflux.http.services import DeadLetterDesk, Limits, Services
from taskflux.store.dead_letters import LetterFilter, Place, Replayed, to_text
from taskflux.tasks.submission import Submission
from taskflux.telemetry import metrics
from tests.unit.http.memory import NOW, MemoryIntake, MemoryReader, Source, counted

Row = dict[str, Any]
AT = "2030-01-01T00:00:00.000000Z"


def letter(**changes: Any) -> Row:
    """The row of a dead task's letter."""
    return {
        "id": uuid7(),
        "tenant": "default",
        "task_id": uuid7(),
        "task_version": 2,
        "type": "email",
        "error_class": "Permanent",
        "reason": "550 no such user",
        "attempts": 1,
        "payload": '{"to": "ada@example.org", "subject": "hi"}',
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "origin": json.dumps({"topic": "tasks.dlq", "partition": 0, "offset": 7, "timestamp": 1893456000000}),
        "record_key": None,
        "record_value": None,
        "record_headers": None,
        "created_at": NOW,
        "state": "open",
        "discarded_at": None,
        "discard_reason": None,
        "task_state": "dead",
        "timeline": [f"{AT}|accepted|scheduled|0|1|"],
        "replays": None,
    } | changes


def poison(**changes: Any) -> Row:
    """The row of a record's letter that was no task."""
    origin = {"topic": "shop-tasks.email", "partition": 1, "offset": 5, "timestamp": -1}
    nothing = dict.fromkeys(("task_id", "task_version", "type", "payload", "traceparent", "task_state", "timeline"))
    told: Row = {"error_class": "NotJson", "origin": json.dumps(origin), "record_value": b"{", "attempts": 0}
    return letter(**(nothing | told | changes))


class MemoryLetters:
    """A shelf and its replays; `last_asked` is what the last page or groups were asked for."""

    def __init__(self) -> None:
        self.rows: dict[UUID, Row] = {}
        self._asked: tuple[LetterFilter | None, str | None, Place | None, int | None] = None, None, None, None
        self.sent: list[tuple[UUID, str | None]] = []
        self.made: list[tuple[Submission, bool]] = []
        self.bulk: dict[UUID, Row] = {}
        self.moved_on = False

    def add(self, row: Row) -> UUID:
        identifier: UUID = row["id"]
        self.rows[identifier] = row
        return identifier

    def last_asked(self) -> tuple[LetterFilter | None, str | None, Place | None, int | None]:
        return self._asked

    async def page(
        self, tenant: str, wanted: LetterFilter, state: str | None, behind: Place | None, limit: int
    ) -> Sequence[Row]:
        self._asked = wanted, state, behind, limit
        newest = sorted(self.rows.values(), key=lambda row: (row["created_at"], row["id"]), reverse=True)
        return [
            row for row in newest if behind is None or (row["created_at"], row["id"]) < (behind.created_at, behind.id)
        ][:limit]

    async def groups(self, tenant: str, wanted: LetterFilter, state: str | None) -> Sequence[Row]:
        self._asked = wanted, state, None, None
        group = {"type": "email", "error_class": "Permanent", "letters": len(self.rows), "oldest": NOW, "newest": NOW}
        return [group] if self.rows else []

    async def count(self, tenant: str, wanted: LetterFilter, state: str | None) -> int:
        return len(self.rows)

    async def get(self, tenant: str, letter: UUID) -> Row | None:
        return self.rows.get(letter)

    async def discard(self, tenant: str, letter: UUID, reason: str) -> bool:
        row = self.rows[letter]
        if row["state"] != "open":
            return False
        row.update(state="discarded", discarded_at=NOW, discard_reason=reason)
        return True

    async def replay(self, tenant: str, letter: UUID, payload: str | None) -> Replayed | None:
        if self.moved_on:
            return None
        row = self.rows[letter]
        self.sent.append((letter, payload))
        return self._replayed(row, row["task_id"], row["type"])

    async def replay_as(self, tenant: str, letter: UUID, mended: Submission, *, edited: bool) -> Replayed | None:
        self.made.append((mended, edited))
        return self._replayed(self.rows[letter], mended.id, mended.type)

    async def start_bulk(self, tenant: str, replay: UUID, wanted: LetterFilter, rate: float) -> Row:
        counts = {"matched": len(self.rows), "replayed": 0, "skipped": 0, "status": "running"}
        times = {"created_at": NOW, "updated_at": NOW + timedelta(seconds=1)}
        self.bulk[replay] = {"id": replay, "filter": to_text(wanted), "rate": rate, **counts, **times}
        return self.bulk[replay]

    async def get_bulk(self, tenant: str, replay: UUID) -> Row | None:
        return self.bulk.get(replay)

    async def outcomes(self, replay: UUID) -> Mapping[str, int]:
        return {"succeeded": 2, "dead": 1}

    async def stop_bulk(self, tenant: str, replay: UUID) -> bool:
        if replay not in self.bulk or self.bulk[replay]["status"] != "running":
            return False
        self.bulk[replay]["status"] = "stopped"
        return True

    def _replayed(self, row: Row, task: UUID, task_type: str) -> Replayed:
        row.update(state="replayed", replays=[[AT, str(task), "scheduled", None]])
        return Replayed(row["id"], task, task_type, row["error_class"])


class LettersFixture:
    """An application with dead letters, and what stands behind it."""

    def __init__(self) -> None:
        self.letters = MemoryLetters()
        self._before = counted(metrics.REPLAYED)
        desk = DeadLetterDesk(self.letters, self.letters, "shop-")
        services = Services(
            MemoryIntake(),
            MemoryReader(),
            TypeRegistry(Source()),
            lambda: True,
            limits=Limits(max_body_bytes=10_000),
            now=lambda: NOW,
            dead_letters=desk,
        )
        transport = httpx.ASGITransport(create_app(services), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://taskflux")

    @property
    def replayed(self) -> dict[tuple[str, ...], int]:
        """Error class and how → letters that were counted as sent again since this was made."""
        return dict(counted(metrics.REPLAYED) - self._before)

    async def replay(self, letter: UUID, **body: Any) -> httpx.Response:
        return await self.client.post(f"/dead-letters/{letter}/replay", json=body)
