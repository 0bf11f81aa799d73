"""What the leader measures for all."""

from __future__ import annotations

from uuid import uuid4

from uuid_utils.compat import uuid7

from taskflux.store.upkeep import CircuitState, Measured, Measures
from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import TYPE, Scene
from tests.integration.store.test_plans import plan


async def measured(scene: Scene) -> Measured:
    return await Measures(scene.database).read()


async def test_tasks_are_counted_by_what_they_wait_for(scene: Scene) -> None:
    worker = await scene.worker()
    dead, _ = await scene.running(worker, 2)
    await scene.settle(worker, dead, Decision(Event.DIED, State.DEAD, error_class="Permanent"))
    await scene.accepted(3, delay=100.0)
    await scene.make_due(*await scene.accepted(2))
    found = await measured(scene)
    assert {(each.type, each.state): each.tasks for each in found.depths} == {
        (TYPE, "scheduled"): 3,
        (TYPE, "due"): 2,
        (TYPE, "running"): 1,
        (TYPE, "dead-due"): 1,
    }
    (due,) = [each for each in found.depths if each.state == "due"]
    assert due.oldest is not None
    assert 1 <= due.oldest < 10
    assert found.parked == {(TYPE, "dead"): 1}


async def test_a_type_of_which_nothing_is_due_has_no_oldest(scene: Scene) -> None:
    await scene.accepted(3, delay=100.0)
    due = [each for each in (await measured(scene)).depths if each.state == "due"]
    assert [each.tasks for each in due] == [0]
    assert all(each.oldest is not None and each.oldest < 0 for each in due)


async def test_workers_count_while_their_lease_lasts_by_the_type_they_take(scene: Scene) -> None:
    ended, lost = await scene.worker(type="email"), await scene.worker(type="email")
    await scene.worker(type="email")
    await scene.worker(handler="process-old")
    await scene.worker(handler="mine")
    await scene.sql("UPDATE workers SET type = NULL WHERE handler <> 'x'")  # of the release before, which did not say
    await ended.end()
    await scene.lose(lost)
    assert (await measured(scene)).workers == {"email": 1, "old": 1, "mine": 1}


async def test_open_dead_letters_are_counted_by_class(scene: Scene) -> None:
    for error_class, state in (("Crash", "open"), ("Crash", "open"), ("Crash", "replayed"), ("NotJson", "open")):
        await scene.sql(
            "INSERT INTO dead_letters (id, identity, error_class, reason, origin, state)"
            " VALUES ($1, $2, $3, '', '{}', $4)",
            uuid7(),
            str(uuid4()),
            error_class,
            state,
        )
    assert (await measured(scene)).dead_letters == {"Crash": 2, "NotJson": 1}


async def test_circuits_are_measured_with_cause_and_duration(scene: Scene) -> None:
    await scene.register("sms", provider="msg91")
    await scene.circuits.open("msg91", "Misconfigured", "wrong key")
    await scene.circuits.open("smtp", "Unavailable", "away")
    await scene.circuits.close("smtp")
    await scene.sql("UPDATE circuits SET opened_at = now() - interval '1 minute'")
    found = await measured(scene)
    circuits = {each.provider: each for each in found.circuits}
    assert 60 <= circuits["msg91"].seconds < 70
    assert circuits["msg91"] == CircuitState("msg91", True, "Misconfigured", circuits["msg91"].seconds)
    assert not circuits["smtp"].open
    assert found.types == {TYPE: None, "sms": "msg91"}


async def test_measuring_reads_neither_the_tasks_nor_the_dead_letters_themselves(own_scene: Scene) -> None:
    scene = own_scene
    await scene.sql(
        "INSERT INTO due (task_id, type, version, publish_at)"
        " SELECT gen_random_uuid(), 'email', 1, now() FROM generate_series(1, 20000)"
    )
    await scene.sql(
        "INSERT INTO dead_letters (id, identity, error_class, reason, origin)"
        " SELECT gen_random_uuid(), n::text, 'Crash', repeat('x', 200), '{}' FROM generate_series(1, 20000) AS n"
    )
    for table in ("due", "dead_letters"):
        await scene.direct.execute(f"VACUUM ANALYZE {table}")
    read = {}
    for name in ("measure_tasks", "measure_letters", "measure_parked", "measure_workers", "measure_circuits"):
        nodes = await plan(scene, name)
        assert not [node for node in nodes if node.get("Relation Name", "").startswith("tasks")]
        read[name] = {node["Index Name"] for node in nodes if node["Node Type"] == "Index Only Scan"}
    assert "due_by_type" in read["measure_tasks"]
    assert read["measure_letters"] == {"dead_letters_open_by_class"}
