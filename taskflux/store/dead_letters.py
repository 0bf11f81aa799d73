"""What could not be done, kept until a person has looked at it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from taskflux.store.database import Database


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead task, or a record that was no task. `identity` says when two of them are the same."""

    id: UUID
    identity: str
    error_class: str
    reason: str
    origin: Mapping[str, object]
    task_id: UUID | None = None
    task_version: int | None = None
    type: str | None = None
    attempts: int = 0
    traceparent: str | None = None
    record_key: bytes | None = None
    record_value: bytes | None = None
    record_headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """The table of dead letters."""

    database: Database

    async def add(self, letters: Sequence[DeadLetter]) -> Mapping[UUID, str]:
        """Keep these, each identity once; the error class of each that is new.

        A dead task's reason and payload are taken from its row.
        """
        if not letters:
            return {}
        tasks = [letter.task_id for letter in letters if letter.task_id is not None]
        rows = await self.database.fetch(
            "add_dead_letters",
            [letter.id for letter in letters],
            [letter.identity for letter in letters],
            [letter.task_id for letter in letters],
            [letter.task_version for letter in letters],
            [letter.type for letter in letters],
            [letter.error_class for letter in letters],
            [letter.reason for letter in letters],
            [letter.attempts for letter in letters],
            [letter.traceparent for letter in letters],
            [json.dumps(letter.origin) for letter in letters],
            [letter.record_key for letter in letters],
            [letter.record_value for letter in letters],
            [_headers(letter.record_headers) for letter in letters],
            min(tasks, default=None),
            max(tasks, default=None),
        )
        return {row["id"]: row["error_class"] for row in rows}


def _headers(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    if not headers:
        return None
    return json.dumps(
        [[name, None if value is None else base64.b64encode(value).decode("ascii")] for name, value in headers]
    )
