"""The application over a real PostgreSQL, on a real port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from starlette.types import ASGIApp

from taskflux.http.access import Access
from taskflux.http.app import create_app
from taskflux.http.connections import Demands
from taskflux.http.dead_letters import DeadLetterRoutes
from taskflux.http.server import listen, serve
from taskflux.http.submissions import Limits, Submissions
from taskflux.http.task_types import TypeRegistry
from taskflux.http.tasks import TaskRoutes
from taskflux.store.database import Database
from taskflux.store.dead_letters import DeadLetters
from taskflux.store.errors import StoreError
from taskflux.store.group_commit import GroupCommit
from taskflux.store.tasks import Tasks, TaskTypes
from taskflux.tasks.model import Accepted, KeyReused, Submission, TaskType
from taskflux.worker.intake import Intake
from tests.keys import OPEN

SIMULATED = TaskType("simulated", "{}", 8, "resend", None)
EMAIL = TaskType(
    "email",
    json.dumps({"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}),
    6,
    "resend",
    "smtp",
)


class StoreIntake(Intake):
    """Accepts into PostgreSQL and leaves publishing to the relay."""

    def __init__(self, tasks: Tasks, patience: float) -> None:
        async def insert(batch: Sequence[Submission]) -> Sequence[Accepted | KeyReused]:
            return await tasks.insert(batch, 0.0)

        self._group: GroupCommit[Submission, Accepted | KeyReused] = GroupCommit(insert, patience=patience)

    def accept(self, submission: Submission) -> asyncio.Future[Accepted | KeyReused]:
        return self._group.submit(submission, submission.unique)

    async def accept_all(self, submissions: Sequence[Submission]) -> Sequence[Accepted | KeyReused | StoreError]:
        return await self._group.submit_each(submissions, [each.unique for each in submissions])


async def application(
    database: Database,
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
    patience: float = 0.5,
    access: Access = OPEN,
) -> ASGIApp:
    """The API over this database, with two types registered."""
    types = TaskTypes(database)
    for task_type in (SIMULATED, EMAIL):
        await types.register(task_type)
    tasks = Tasks(database)
    intake = StoreIntake(tasks, patience)
    submissions = Submissions(intake, TypeRegistry(types), limits)
    letters = DeadLetterRoutes(DeadLetters(database), submissions)
    routes = TaskRoutes(tasks, None, lambda task_type: None)
    return create_app(submissions, routes, letters, None, started=lambda: True, access=access)


def demand(demands: Demands, **changes: float) -> None:
    """Change what a server demands, from its next look at its connections on: a test says when, and not a clock."""
    for name, value in changes.items():
        object.__setattr__(demands, name, value)  # it is frozen for everybody else


@dataclass(frozen=True, slots=True)
class Served:
    """An application on a port of 127.0.0.1."""

    port: int
    client: httpx.AsyncClient
    draining: asyncio.Event
    hurry: asyncio.Event
    serving: asyncio.Task[None]


@asynccontextmanager
async def served(
    app: ASGIApp,
    grace: float = 5.0,
    linger: float = 0,
    demands: Demands = Demands(),  # noqa: B008 - it is frozen
    allowed: Sequence[str] = (),
) -> AsyncIterator[Served]:
    """Serve `app` until the end of the block."""
    draining, hurry = asyncio.Event(), asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve(
            app,
            listen("127.0.0.1", 0),
            draining=draining,
            grace=grace,
            demands=demands,
            linger=linger,
            hurry=hurry,
            listening=port.set_result,
            allowed=allowed,
        )
    )
    address = f"http://127.0.0.1:{await port}"
    async with httpx.AsyncClient(base_url=address, timeout=30, limits=httpx.Limits(max_connections=200)) as client:
        yield Served(await port, client, draining, hurry, serving)
    draining.set()
    hurry.set()
    await serving
