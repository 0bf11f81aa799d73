"""Accepting tasks and reading them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from uuid import UUID

from taskflux.store.database import Database, Row
from taskflux.store.errors import StoreBusy
from taskflux.tasks.submission import Accepted, KeyReused, Submission


@dataclass(frozen=True, slots=True)
class Tasks:
    """The table of tasks, as its submitters use it.

    `grace` is how long, in seconds, the relay leaves a new task alone because its submitter promised to publish it;
    0 leaves publishing to the relay.
    """

    database: Database

    @staticmethod
    def identity(submission: Submission) -> Hashable:
        """What may stand only once in a batch: an idempotency key, else the task itself."""
        key = submission.idempotency
        return (submission.tenant, key.key) if key else submission.id

    async def insert(self, submissions: Sequence[Submission], grace: float) -> Sequence[Accepted | KeyReused]:
        """Make all of them durable in one statement; one outcome for each.

        It may be called again with the same submissions after an error: what was written then is recognised.

        Raises:
            StoreError: nothing is known to be written.
        """
        rows = await self.database.fetch("insert_tasks", *_columns(submissions), grace)
        accepted = {row["id"]: row for row in rows}
        missing = [submission for submission in submissions if submission.id not in accepted]
        others = await self._answer_missing(missing) if missing else {}
        if len(others) < len(missing):
            raise StoreBusy("an idempotency key expired between two looks at it")
        return [
            others[each.id]
            if each.id in others
            else Accepted(
                each.id,
                each.type,
                accepted[each.id]["created_at"],
                publish_now=grace > 0 and accepted[each.id]["due_now"],
            )
            for each in submissions
        ]

    async def _answer_missing(self, missing: Sequence[Submission]) -> dict[UUID, Accepted | KeyReused]:
        """What was not inserted is a repeat of a key, or was written by a former try whose answer was lost."""
        answers: dict[UUID, Accepted | KeyReused] = {}
        keyed = {(s.tenant, s.idempotency.key): s for s in missing if s.idempotency}
        if keyed:
            tenants, keys = zip(*keyed, strict=True)
            for row in await self.database.fetch("find_keys", tenants, keys):
                submission = keyed[row["tenant"], row["key"]]
                answers[submission.id] = _repeat(submission, row)
        unkeyed = sorted(s.id for s in missing if not s.idempotency)
        if unkeyed:
            types = {s.id: s.type for s in missing}
            for row in await self.database.fetch("find_created", unkeyed, unkeyed[0], unkeyed[-1]):
                # The promise to publish was made by the former try; the relay keeps it if nobody else does.
                answers[row["id"]] = Accepted(row["id"], types[row["id"]], row["created_at"])
        return answers

    async def get(self, task: UUID, tenant: str) -> Row | None:
        """The row of a task, or None."""
        return await self.database.fetchrow("get_task", task, tenant)


def _repeat(submission: Submission, row: Row) -> Accepted | KeyReused:
    key = submission.idempotency
    assert key is not None
    if row["digest"] != key.digest:
        return KeyReused(key.key)
    return Accepted(row["task_id"], row["type"], row["created_at"], repeated=row["task_id"] != submission.id)


def _columns(submissions: Sequence[Submission]) -> list[list[object]]:
    keys = [submission.idempotency for submission in submissions]
    return [
        [s.id for s in submissions],
        [s.tenant for s in submissions],
        [s.type for s in submissions],
        [s.payload for s in submissions],
        [s.max_attempts for s in submissions],
        [s.key for s in submissions],
        [s.schedule_at for s in submissions],
        [s.delay for s in submissions],
        [s.expires_at for s in submissions],
        [s.metadata for s in submissions],
        [s.traceparent for s in submissions],
        [key.key if key else None for key in keys],
        [key.digest if key else None for key in keys],
        [key.ttl if key else None for key in keys],
    ]
