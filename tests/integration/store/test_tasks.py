from __future__ import annotations

import asyncio

from uuid_utils.compat import uuid7

from handlers.store.database import Database
from handlers.store.group_commit import GroupCommit
from handlers.store.tasks import Tasks
from handlers.tasks.submission import Accepted, IdempotencyKey, KeyReused, Submission


def submission(**changes: object) -> Submission:
    return Submission(**({"id": uuid7(), "type": "simulated", "payload": "{}", "max_attempts": 8} | changes))  # type: ignore[arg-type]


async def test_a_hundred_simultaneous_submits_of_one_key_make_one_task(database: Database) -> None:
    tasks = Tasks(database)
    commits = [
        GroupCommit[Submission, Accepted | KeyReused](lambda batch: tasks.insert(batch, 10.0), identity=Tasks.identity)
        for _ in range(4)  # four processes would have one each
    ]
    key = IdempotencyKey("order-17", b"digest")
    answers = await asyncio.gather(
        *(commits[place % 4].submit(submission(idempotency=key)) for place in range(100))
    )
    accepted = [answer for answer in answers if isinstance(answer, Accepted)]
    assert len(accepted) == 100
    assert len({answer.id for answer in accepted}) == 1
    assert len({answer.created_at for answer in accepted}) == 1
    assert sum(not answer.repeated for answer in accepted) == 1
    assert len(await database.fetch("audit_page", uuid7().__class__(int=0), 10)) == 1
