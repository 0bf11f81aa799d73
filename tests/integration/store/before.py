"""The release before at work: its statements, and tasks as they leave them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from taskflux.store import claims
from taskflux.store.claims import Claim, Claims, Settlement
from taskflux.store.database import Row, Statement, parse
from tests.integration.store.scene import GRACE, LOG, TYPE, Scene, succeeded

OLD: Final = parse(Path(__file__).with_name("before.sql").read_text(encoding="utf-8"))
NOWHERE: Final = UUID(int=0)
LEADER: Final[Mapping[str, Any]] = {"name": "relay", "holder": NOWHERE, "seconds": 10.0, "origin": None}


def batch(task: UUID, version: int) -> dict[str, Any]:
    """The parameters that every statement over one task takes, and what some of them take besides."""
    return {
        "ids": [task],
        "versions": [version],
        "least": task,
        "greatest": task,
        "logs": [LOG],
        "partitions": [0],
        "offsets": [1],
        "grace": GRACE,
        "rate": 1e6,
        "start": 0.0,
        "id": task,
        "tenant": "default",
        "note": "",
        "type": TYPE,
        "suspects": False,
        "carried": 1000,
        "label": "old@host:1",
    }


def outcome(task: UUID, version: int, state: str = "succeeded", event: str = "succeeded") -> dict[str, Any]:
    """The parameters of a settlement."""
    return batch(task, version) | {
        "states": [state],
        "events": [event],
        "delays": [0.0],
        "given_back": [0],
        "releases": [0],
        "results": [None],
        "error_classes": [None],
        "reasons": [None],
        "notes": [""],
        "spans": [None],
    }


def values(statement: Statement, arguments: Mapping[str, Any]) -> list[Any]:
    return [arguments[name] for name in statement.parameters]


@dataclass(frozen=True, slots=True)
class Before:
    """What processes of the release before do, over a connection of their own or over the scene's transaction."""

    scene: Scene

    async def run(self, name: str, arguments: Mapping[str, Any], *, directly: bool = False) -> list[Row]:
        statement = OLD[name]
        if directly:
            return list(await self.scene.direct.fetch(statement.text, *values(statement, arguments)))
        chosen = {each: arguments[each] for each in statement.parameters}
        return list(await self.scene.database.fetch(statement, **chosen))

    async def claim(self, worker: Claims, task: UUID, version: int) -> list[Row]:
        rows = await self.run("claim", batch(task, version) | {"worker": worker.worker.id})
        return [row for row in rows if row["id"] is not None]

    async def confirm(self, task: UUID, version: int) -> None:
        await self.run("confirm", batch(task, version))

    async def sweep(self) -> None:
        """As `Upkeep.sweep`, with the verdict of `resend`."""
        lapsed = sorted(await self.run("lapsed", {"limit": 100}), key=lambda row: row["task_id"])
        if not lapsed:
            return
        ids, count = [row["task_id"] for row in lapsed], len(lapsed)
        verdict = {
            "states": ["scheduled"] * count,
            "events": ["lease-ran-out"] * count,
            "given_back": [1] * count,
            "error_classes": [None] * count,
            "reasons": [None] * count,
            "notes": [""] * count,
            "groups": [None] * count,
            "alone": [False] * count,
            "losses": [1] * count,
            "rate": 1e6,
            "start": 0.0,
        }
        which = {"ids": ids, "least": ids[0], "greatest": ids[-1], "workers": [row["worker"] for row in lapsed]}
        await self.run("sweep", verdict | which | {"versions": [row["version"] for row in lapsed]})

    async def lead(self) -> None:
        assert await self.run("lead", LEADER)

    async def queued(self) -> list[Row]:
        """What its auditor takes for published."""
        rows = await self.run("audit_page", {"after": NOWHERE, "limit": 100})
        return [row for row in rows if row["id"] is not None]


async def settle(worker: Claims, claim: Claim) -> bool:
    """Whether it counts."""
    (settled,) = await worker.settle_all([Settlement(claim.id, claim.version, succeeded(None))])
    return settled.written


async def claim_directly(scene: Scene, worker: Claims, task: UUID, version: int) -> list[Row]:
    """This release's claim, in the transaction of `scene.direct`."""
    statement = claims.SQL["claim"]
    arguments = batch(task, version) | {"worker": worker.worker.id, "version": version, "versions": []}
    rows = await scene.direct.fetch(statement.text, *values(statement, arguments))
    return [row for row in rows if row["id"] is not None]


Prepare = Callable[[Scene, Before], Awaitable[UUID]]


async def pending(scene: Scene, before: Before) -> UUID:
    """At version 1, its outbox row is due."""
    (task,) = await scene.accepted(expires_at=None)
    await scene.make_due(task)
    return task


async def published(scene: Scene, before: Before) -> UUID:
    """We have confirmed its record."""
    task = await pending(scene, before)
    await scene.confirm([task])
    return task


async def queued(scene: Scene, before: Before) -> UUID:
    """The release before has confirmed its record."""
    task = await pending(scene, before)
    await before.confirm(task, 1)
    return task


async def late(scene: Scene, before: Before) -> UUID:
    """A worker of the release before was lost with it at version 2, and may still report; it waits at version 3."""
    task = await published(scene, before)
    worker = await scene.worker()
    assert await before.claim(worker, task, 1)
    await scene.lose(worker)
    await before.sweep()
    return task


async def runs_once(scene: Scene, worker: Claims, task: UUID, version: int, attempt: int) -> None:
    """The task runs under the claim of this version, and ends by it, with nothing left behind."""
    row = await scene.row(task)
    assert (row["state"], row["version"], row["attempts"]) == ("running", version, attempt)
    assert await scene.claims() == {(task, version)}
    assert await worker.held() == {task: version}
    assert await scene.due(task) is None
    (settled,) = await worker.settle_all([Settlement(task, version, succeeded(None))])
    assert settled.written
    row = await scene.wide(task)
    assert (row["state"], row["version"], row["attempts"]) == ("succeeded", version, attempt)
    assert await scene.claims() == set()
    assert await scene.due(task) is None
