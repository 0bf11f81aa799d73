from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from taskflux.store.claims import Claim, Claims, Settlement
from taskflux.store.dead_letters import DeadLetter, DeadLetterFilter, DeadLetters
from taskflux.store.errors import StoreBusy, StoreUnavailable
from taskflux.store.notifications import Receipts
from taskflux.store.upkeep import Upkeep
from taskflux.stream.client import KafkaUnavailable
from taskflux.tasks.decision import Decision
from taskflux.tasks.model import DeliveryReport, DeliveryStatus
from taskflux.tasks.states import Event, State
from taskflux.upkeep.leader import HOURLY, NAME, WEEKS_AHEAD, Leader
from taskflux.upkeep.measuring import Measuring
from taskflux.upkeep.recovery import Auditor, LeaseSweep
from taskflux.worker.process import Process
from taskflux.worker.settings import RelaySettings, Settings
from tests.integration.store.scene import TYPE, Scene
from tests.unit.world import Clock, WatchedDatabase

LEADER = 10.0
ALL = {"sweep", "audit", "measuring"}


class Beside:
    """In the place of the auditor, the measuring and the lease sweep: whether they are at work."""

    def __init__(self) -> None:
        self.working: set[str] = set()
        self.began: list[str] = []
        self.started = asyncio.Event()
        self.fails: dict[str, Exception] = {}
        self.started_again = 0

    def start_again(self) -> None:
        self.started_again += 1

    async def keep_sweeping(self) -> None:
        await self._work("sweep")

    async def keep_auditing(self) -> None:
        await self._work("audit")

    async def keep_measuring(self) -> None:
        await self._work("measuring")

    async def _work(self, name: str) -> None:
        self.working.add(name)
        self.began.append(name)
        self.started.set()
        try:
            if (error := self.fails.pop(name, None)) is not None:
                raise error
            await asyncio.Event().wait()
        finally:
            self.working.remove(name)


class Relay:
    """One process that leads or stands by to."""

    def __init__(self, scene: Scene) -> None:
        settings = Settings(relay=RelaySettings(leader_seconds=LEADER))
        self.scene = scene
        self.process = Process("relay", settings)
        self.clock = Clock()
        self.beside = Beside()
        self.leader = Leader(
            self.process,
            scene.publishing,
            cast("Auditor", self.beside),
            cast("Measuring", self.beside),
            cast("LeaseSweep", self.beside),
            self.clock,
        )

    @property
    def database(self) -> WatchedDatabase:
        return cast("WatchedDatabase", self.scene.database)

    async def tick(self, later: float = 0.0) -> None:
        """The next tick, so many seconds later; what it begins beside itself has begun."""
        self.clock.now += later
        await self.leader.tick()
        for _ in range(3):
            await asyncio.sleep(0)

    async def leads(self) -> bool:
        """Whether a tick does a leader's work."""
        before = self.database.ran["expired_now"]
        await self.tick()
        return self.database.ran["expired_now"] > before

    async def resign(self) -> None:
        """Its process drains."""
        self.process.drain()
        await self.leader.run()


async def test_one_leads_and_the_others_stand_by(scene: Scene) -> None:
    first, second = Relay(scene), Relay(scene)
    assert await first.leads()
    assert not await second.leads()
    assert await first.leads()
    assert (first.beside.working, second.beside.working) == (ALL, set())
    await first.resign()


async def test_when_the_leader_resigns_another_takes_over_at_once(scene: Scene) -> None:
    first, second = Relay(scene), Relay(scene)
    await first.tick()
    await first.resign()
    assert first.beside.working == set()
    assert first.leader.ended.is_set()
    assert await second.leads()
    await second.resign()


async def test_a_silent_leader_is_replaced_and_stops_its_work_when_it_notices(scene: Scene) -> None:
    first, second = Relay(scene), Relay(scene)
    await first.tick()
    await scene.sql("UPDATE leaders SET expires_at = now() - interval '1 second' WHERE name = $1", NAME)
    assert await second.leads()
    assert first.beside.working == ALL
    assert not await first.leads()
    assert first.beside.working == set()
    await second.resign()


async def test_resigning_does_not_affect_another_leader(scene: Scene) -> None:
    first, second = Relay(scene), Relay(scene)
    await first.tick()
    await second.resign()
    assert await first.leads()
    await first.resign()


async def test_two_leaders_at_once_do_no_harm(own_scene: Scene) -> None:
    """A step of PostgreSQL's clock can make a second one: what both do is compared and set, or done by one at a time.

    Their sweeps, their auditors and their measurements have tests of their own.
    """
    scene, worker = own_scene, await own_scene.worker()
    expired = await scene.accepted(20, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    reported = await held_after_their_report(scene, worker, 20)
    dead = await letters(scene, worker, 20)
    replays, bulk = DeadLetters(scene.database), uuid7()
    await replays.start_bulk("default", bulk, DeadLetterFilter(type=TYPE), 1000.0)
    for week in await weeks_ahead(scene):
        await scene.direct.execute(f'DROP TABLE "{week}"')
    await scene.sql(
        "INSERT INTO idempotency_keys (tenant, key, task_id, type, digest, expires_at)"
        " SELECT '', n::text, gen_random_uuid(), '', '', now() FROM generate_series(1, 1500) AS n"
    )
    await (await scene.worker()).end()

    await scene.direct.execute(EVERYBODY_LEADS)
    relays = [Relay(scene) for _ in range(2)]
    relays[0].database.when["make_partitions"] = asyncio.Barrier(2).wait
    for _ in range(2):
        await asyncio.gather(*(relay.tick(HOURLY) for relay in relays))
        assert [relay.beside.working for relay in relays] == [ALL, ALL]
        await scene.sql("SELECT pg_sleep(0.1)")  # for the rate of the bulk replay
    assert {await scene.state(task) for task in expired} == {("dead", 2)}
    assert [await scene.events(task) for task in expired] == [["accepted", "died"]] * 20
    assert {await scene.state(claim.id) for claim in reported} == {("succeeded", reported[0].version + 1)}
    assert {(row["replays"], row["version"]) for row in [await scene.row(task) for task in dead]} == {(1, 3)}
    row = await replays.get_bulk("default", bulk)
    assert row is not None
    assert (row["matched"], row["replayed"], row["skipped"], row["status"]) == (20, 20, 0, "finished")
    assert len(await weeks_ahead(scene)) == WEEKS_AHEAD
    assert await scene.sql("SELECT FROM idempotency_keys") == []
    assert [row["id"] for row in await scene.sql("SELECT id FROM workers")] == [worker.worker.id]
    for relay in relays:
        await relay.resign()


EVERYBODY_LEADS = """
CREATE FUNCTION expire_at_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.expires_at := now() - interval '1 second';
    RETURN NEW;
END $$;
CREATE TRIGGER expire_at_once BEFORE INSERT OR UPDATE ON leaders FOR EACH ROW EXECUTE FUNCTION expire_at_once();
"""


async def held_after_their_report(scene: Scene, worker: Claims, count: int) -> list[Claim]:
    """Tasks that are uncertain, though their delivery was reported before."""
    claims = await scene.running(worker, count)
    await Receipts(scene.database).record([DeliveryReport(claim.id, 0, DeliveryStatus.DELIVERED) for claim in claims])
    held = Decision(Event.HELD, State.UNCERTAIN, error_class="Ambiguous", reason="perhaps")
    await worker.settle_all([Settlement(claim.id, claim.version, held) for claim in claims])
    return claims


ORIGIN = {"topic": "tasks.dlq", "partition": 0, "offset": 7, "timestamp": 0}


async def letters(scene: Scene, worker: Claims, count: int) -> list[UUID]:
    """Tasks that have died, each with an open dead letter."""
    claims = await scene.running(worker, count)
    died = Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="never")
    await worker.settle_all([Settlement(claim.id, claim.version, died) for claim in claims])
    made = [
        DeadLetter(uuid7(), f"task:{claim.id}:2", "Permanent", "", ORIGIN, claim.id, claim.version, TYPE)
        for claim in claims
    ]
    await scene.dead_letters.add(made)
    return [claim.id for claim in claims]


async def weeks_ahead(scene: Scene) -> list[str]:
    """The partitions of the weeks to come, the next one first."""
    rows = await scene.sql(
        "SELECT relname::text AS name FROM pg_class WHERE relispartition AND relkind = 'r'"
        " AND relname > 'tasks_' || to_char(now() AT TIME ZONE 'UTC', 'IYYY\"w\"IW') AND relname ~ '^tasks_\\d'"
        " ORDER BY 1"
    )
    return [row["name"] for row in rows]


async def test_a_task_that_waits_beyond_its_expiry_is_dead(scene: Scene) -> None:
    (task,) = await scene.accepted(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    relay = Relay(scene)
    await relay.tick()
    row = await scene.row(task)
    assert (row["state"], row["error_class"]) == ("dead", "Expired")
    await relay.resign()


async def test_housekeeping_is_done_once_an_hour(scene: Scene) -> None:
    relay = Relay(scene)
    await relay.tick()
    await relay.tick(HOURLY - 1)
    assert relay.database.ran["forget_workers"] == 1
    await relay.tick(1)
    assert relay.database.ran["forget_workers"] == 2
    await relay.resign()


async def test_a_standby_does_no_housekeeping(scene: Scene) -> None:
    first, second = Relay(scene), Relay(scene)
    await first.tick()
    ran = first.database.ran["forget_workers"]
    await second.tick()
    assert first.database.ran["forget_workers"] == ran
    await first.resign()


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (StoreUnavailable("unreachable"), logging.DEBUG),
        (KafkaUnavailable("unreachable"), logging.DEBUG),
        (StoreBusy("deadlock"), logging.WARNING),
    ],
)
async def test_background_work_starts_again_and_does_not_log_an_outage_twice(
    scene: Scene, caplog: pytest.LogCaptureFixture, error: Exception, level: int
) -> None:
    caplog.set_level(logging.DEBUG, "taskflux.upkeep.leader")
    relay = Relay(scene)
    relay.beside.fails["audit"] = error
    await relay.tick()
    assert relay.beside.working == ALL - {"audit"}
    await relay.tick(1)
    assert relay.beside.working == ALL
    assert relay.beside.began.count("audit") == 2
    assert [record.levelno for record in caplog.records if "interrupted" in record.message] == [level]
    await relay.resign()


async def test_a_bug_in_background_work_is_not_hidden(scene: Scene) -> None:
    relay = Relay(scene)
    relay.beside.fails["measuring"] = KeyError("a bug")
    await relay.tick()
    with pytest.raises(KeyError):
        await relay.tick(1)
    await relay.resign()


async def run_until_it_fails(relay: Relay, statement: str) -> None:
    """Lead until this statement has failed, then drain."""
    relay.database.unreachable.add(statement)
    running = asyncio.create_task(relay.leader.run())
    async with asyncio.timeout(20):
        await relay.database.failed.wait()
        relay.process.drain()
        await running


async def test_a_leader_waits_for_a_postgresql_that_cannot_be_reached(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    relay = Relay(scene)
    await run_until_it_fails(relay, "lead")
    assert relay.leader.ended.is_set()
    assert caplog.records == []


async def test_after_postgresql_was_unreachable_every_worker_gets_a_whole_lease_again(scene: Scene) -> None:
    relay = Relay(scene)
    await relay.tick()
    await run_until_it_fails(relay, "lead")
    assert relay.beside.started_again == 1


async def test_a_failed_duty_does_not_restart_the_leases(scene: Scene) -> None:
    """The workers could beat: otherwise a duty that fails every second would keep every lease from expiring."""
    relay = Relay(scene)
    await relay.tick()
    await run_until_it_fails(relay, "expired_now")
    assert relay.beside.started_again == 0


async def test_the_name_of_a_supervisor_is_stored_with_its_leader(scene: Scene) -> None:
    """So that it can depose the leader of its own former run."""
    relay = Relay(scene)
    relay.process.settings.worker.origin = "dev-1"
    await relay.tick()
    await Upkeep(scene.database).end_leases_of("dev-1")
    assert await Upkeep(scene.database).lead(NAME, uuid7(), LEADER, None)
    await relay.resign()
