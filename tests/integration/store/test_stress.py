"""All actors at once on the same few hundred tasks, in any order: nothing blocks for ever, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

from uuid_utils.compat import uuid7

from taskflux.store.claims import Claim, Claims, LeaseEnded, Settlement
from taskflux.store.publishing import Confirmation, PendingPublish, Publishing
from taskflux.store.tasks import FIRST_ID
from taskflux.tasks.decision import Decision, release
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import LOG, TYPE, Scene, submission, succeeded

TASKS, WORKERS, ACTORS = 300, 4, 6
ROUNDS = int(os.environ.get("TASKFLUX_TEST_STRESS_ROUNDS", "120"))
RATE = 1e6

OUTCOMES = [
    succeeded({"ok": True}),
    Decision(Event.RETRY, State.SCHEDULED, 0.0, error_class="Transient", reason="later"),
    Decision(Event.RETRY, State.SCHEDULED, 0.0, error_class="Transient", reason="later"),
    release("drain"),
    release("the circuit is open"),
    Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="never"),
    Decision(Event.HELD, State.UNCERTAIN, error_class="Ambiguous", reason="perhaps"),
]


@dataclass(slots=True)
class Bustle:
    """What the actors share: a log that forgets nothing, claims to be settled more than once, late confirmations."""

    scene: Scene
    workers: list[Claims]
    log: list[tuple[UUID, int]] = field(default_factory=list)
    unconfirmed: list[PendingPublish] = field(default_factory=list)
    held: list[tuple[Claims, Claim]] = field(default_factory=list)
    successes: Counter[UUID] = field(default_factory=Counter)
    by_hand: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def publishing(self) -> Publishing:
        """Without grace: tasks are published again while their confirmation is being written."""
        return Publishing(self.scene.database, 0.002)

    async def act(self, random: Random) -> None:
        steps = (
            self.publish, self.publish, self.confirm, self.confirm, self.claim, self.claim, self.claim,
            self.settle, self.settle, self.settle, self.lose, self.audit, self.expire, self.bury, self.clear,
        )  # fmt: skip
        for _ in range(ROUNDS):
            await random.choice(steps)(random)

    async def publish(self, random: Random) -> None:
        for due in await self.publishing.take(TYPE, random.randint(1, 150)):
            self.log.append((due.id, due.version))
            self.unconfirmed.append(due)

    async def confirm(self, random: Random) -> None:
        batch = random.sample(self.unconfirmed, min(len(self.unconfirmed), random.randint(1, 150)))
        await self.publishing.confirm(
            [Confirmation(due.id, due.version, LOG, 0, random.randint(0, 10**6)) for due in batch]
        )

    async def claim(self, random: Random) -> None:
        records = random.sample(self.log[-400:], min(len(self.log[-400:]), random.randint(1, 150)))
        worker = random.choice(self.workers)
        versions = dict(records)
        with suppress(LeaseEnded):
            claims = list(await worker.claim(TYPE, versions))
            self.held += [(worker, claim) for claim in claims]
            for group in await worker.suspected(versions):
                if members := await worker.claim(TYPE, group, suspects=True):
                    self.held += [(worker, claim) for claim in members]
                    await worker.begin_alone(members)

    async def settle(self, random: Random) -> None:
        worker = random.choice(self.workers)
        mine = [claim for owner, claim in self.held[-300:] if owner is worker]
        picked = {claim.id: claim for claim in random.sample(mine, min(len(mine), random.randint(1, 100)))}
        batch = [Settlement(claim.id, claim.version, random.choice(OUTCOMES)) for claim in picked.values()]
        for each, answer in zip(batch, await worker.settle_all(batch), strict=True):
            self.successes[each.id] += answer.written and each.decision.state is State.SUCCEEDED

    async def lose(self, random: Random) -> None:
        async with self.by_hand:  # the scene's own connection
            await self.scene.lose(random.choice(self.workers))
        await self.scene.upkeep.sweep(random.randint(1, 100), RATE)
        for worker in self.workers:
            if not await worker.beat(0):
                await worker.begin()

    async def clear(self, random: Random) -> None:
        await random.choice(self.workers).clear_suspects()

    async def audit(self, random: Random) -> None:
        _, queued = await self.scene.upkeep.audit_page(FIRST_ID, 10_000)
        await self.scene.upkeep.requeue(random.sample(queued, len(queued) // 2), RATE)

    async def expire(self, random: Random) -> None:
        await self.publishing.expire(random.randint(1, 20))

    async def bury(self, random: Random) -> None:
        await self.publishing.confirm_dead(await self.publishing.take_dead(random.randint(1, 50)))


async def test_everybody_at_once_in_any_order_loses_nothing(scene: Scene) -> None:
    next_week = uuid7().int + (7 * 86_400_000 << 80)
    ids = [uuid7() if n % 3 else UUID(int=next_week + n) for n in range(TASKS)]  # two partitions
    tasks = [submission(id=task, max_attempts=1000) for task in ids]
    await scene.tasks.insert(tasks, 0.0)
    bustle = Bustle(scene, [await scene.worker() for _ in range(WORKERS)])
    seed = int(os.environ.get("TASKFLUX_TEST_SEED", "7"))
    async with asyncio.TaskGroup() as actors:  # a deadlock would come out as StoreBusy
        for number in range(ACTORS):
            actors.create_task(bustle.act(Random(seed * 100 + number)))
    await scene.upkeep.clear_suspects()
    await scene.check_whereabouts()
    await scene.check_transitions()
    assert max(bustle.successes.values()) == 1
    await bring_home(scene)
    ended = Counter(row["state"] for row in await scene.sql("SELECT state FROM tasks"))
    assert ended.total() == TASKS
    assert ended.keys() <= {"succeeded", "dead", "uncertain"}
    assert ended["succeeded"] >= sum(bustle.successes.values())


async def bring_home(scene: Scene) -> None:
    """After the stress every task can be brought to its end, from whatever state it is in."""
    worker = await scene.worker()
    await scene.sql("UPDATE workers SET ended = id <> $1", worker.worker.id)
    await scene.upkeep.sweep(TASKS, RATE)
    _, queued = await scene.upkeep.audit_page(FIRST_ID, 10_000)
    await scene.upkeep.requeue(queued, RATE)
    await scene.sql("UPDATE due SET publish_at = now() - interval '1 second'")
    async with asyncio.timeout(30):
        while await scene.sql("SELECT FROM due WHERE NOT dead"):
            due = await scene.publishing.take(TYPE, 100)
            claims = await worker.claim(TYPE, {each.id: each.version for each in due}, suspects=True)
            await worker.settle_all([Settlement(claim.id, claim.version, succeeded(None)) for claim in claims])
            await scene.publishing.confirm([Confirmation(each.id, each.version, LOG, 0, 0) for each in due])
    assert await scene.claims() == set()
