from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations
from uuid import uuid4

import pytest

from taskflux.store.claims import Settled, Settlement
from taskflux.store.errors import RefusedData
from taskflux.store.group_commit import GroupCommit
from taskflux.store.texts import NOTE_LENGTH
from taskflux.tasks.decision import Decision, release
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import TYPE, Scene, succeeded

RETRY = Decision(Event.RETRY, State.SCHEDULED, 60.0, error_class="Transient", reason="later")
DEAD = Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="never")
HELD = Decision(Event.HELD, State.UNCERTAIN, error_class="Ambiguous", reason="perhaps")


async def test_a_success_ends_the_task_with_its_result(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    settled = await scene.settle(worker, claim, succeeded({"id": "7"}))
    assert settled.written
    assert not settled.late
    row = await scene.row(claim.id)
    assert (row["state"], row["result"], row["error_class"], row["worker"]) == ("succeeded", '{"id": "7"}', None, None)
    assert await scene.claims() == set()
    assert await scene.due(claim.id) is None


async def test_a_retry_is_due_after_its_delay_at_the_version_of_the_claim(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, RETRY)
    due = await scene.due(claim.id)
    assert due is not None
    assert due["version"] == claim.version
    assert due["wait"] == pytest.approx(60, abs=5)
    row = await scene.row(claim.id)
    assert (row["state"], row["attempts"], row["error_reason"]) == ("scheduled", 1, "later")


async def test_the_next_claim_knows_the_span_of_the_last_attempt_that_was_recorded(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    assert claim.attempt_span is None
    for span in ("00-one", None):  # an attempt that is not recorded leaves it as it is
        await worker.settle_all([Settlement(claim.id, claim.version, release("drain"), span)])
        (claim,) = await worker.claim(TYPE, {claim.id: claim.version})
        assert claim.attempt_span == "00-one"
    (again,) = await worker.reclaim({claim.id: claim.version - 1})
    assert again.attempt_span == "00-one"


async def test_an_outcome_is_written_the_same_whatever_else_is_in_its_statement(scene: Scene) -> None:
    worker = await scene.worker()
    decisions = [
        succeeded(None),
        succeeded({"id": "7"}),
        RETRY,
        replace(RETRY, delay=0.0, reason=""),
        DEAD,
        HELD,
        release("drain"),
        release("drain", releases=2),
        replace(RETRY, give_back=True, result={"reached": 2}),
    ]

    async def written(together: list[Decision]) -> list[tuple[object, ...]]:
        claims = await scene.running(worker, len(together))
        pairs = list(zip(claims, together, strict=True))
        settlements = [Settlement(claim.id, claim.version, decision) for claim, decision in pairs]
        assert all(each.written for each in await worker.settle_all(settlements))
        found = []
        for claim in claims:
            row, due = await scene.row(claim.id), await scene.due(claim.id)
            names = ("state", "attempts", "handbacks", "result", "error_class", "error_reason", "attempt_span")
            entry = dict((await scene.timeline(claim.id))[-1]) | {"at": None}
            found.append((*(row[name] for name in names), entry, due and round(due["wait"] / 30)))
        return found

    alone = [(await written([decision]))[0] for decision in decisions]
    assert await written(decisions) == alone
    for first, second in combinations(range(len(decisions)), 2):
        assert await written([decisions[first], decisions[second]]) == [alone[first], alone[second]]


async def test_a_released_task_is_due_at_once_and_spends_no_attempt(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, release("drain", releases=2))
    due, row = await scene.due(claim.id), await scene.row(claim.id)
    assert due is not None
    assert due["wait"] <= 0
    assert (row["attempts"], row["handbacks"]) == (0, 2)


async def test_a_dead_task_has_a_dead_letter_to_publish(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, DEAD)
    due = await scene.due(claim.id, dead=True)
    assert due is not None
    assert (due["version"], due["wait"] <= 0) == (claim.version, True)
    assert await scene.due(claim.id) is None


async def test_a_held_task_is_not_due(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, HELD)
    assert await scene.state(claim.id) == ("uncertain", claim.version)
    assert await scene.due(claim.id) is None
    assert await scene.due(claim.id, dead=True) is None


async def test_progress_is_kept_for_the_next_attempt_until_it_is_replaced(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, Decision(Event.RETRY, State.SCHEDULED, result={"sent": 2}))
    (second,) = await worker.claim(TYPE, {claim.id: claim.version})
    assert second.progress == '{"sent": 2}'
    await scene.settle(worker, second, RETRY)
    (third,) = await worker.claim(TYPE, {claim.id: second.version})
    assert third.progress == '{"sent": 2}'


async def test_the_same_settlement_again_changes_nothing(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, RETRY)
    before = await scene.row(claim.id)
    assert await scene.settle(worker, claim, RETRY) == Settled(False)
    assert await scene.settle(worker, claim, succeeded(None)) == Settled(False)
    assert await scene.row(claim.id) == before


@pytest.mark.parametrize("decision", [succeeded(None), DEAD], ids=["succeeded", "dead"])
@pytest.mark.parametrize("published", [False, True], ids=["scheduled", "queued"])
async def test_a_late_outcome_wins_while_the_task_was_not_claimed_again(
    decision: Decision, published: bool, scene: Scene
) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    await scene.upkeep.sweep(100, 1000)
    if published:
        await scene.confirm([claim.id], claim.version + 1)
    settled = await scene.settle(worker, claim, decision)
    assert (settled.written, settled.late) == (True, True)
    assert await scene.state(claim.id) == (decision.state, claim.version + 2)
    # The record that is being sent, or still to be sent, finds nothing.
    other = await scene.worker()
    assert await other.claim(TYPE, {claim.id: claim.version + 1}) == []
    await scene.make_due(claim.id)
    assert await scene.publishing.take(TYPE, 10) == []
    assert await scene.due(claim.id) is None


@pytest.mark.parametrize("decision", [succeeded(None), DEAD], ids=["succeeded", "dead"])
async def test_a_late_outcome_decides_a_held_task(decision: Decision, scene: Scene) -> None:
    await scene.register(TYPE, "hold")
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    await scene.upkeep.sweep(100, 1000)
    assert (await scene.state(claim.id))[0] == "uncertain"
    assert (await scene.settle(worker, claim, decision)).late
    assert (await scene.state(claim.id))[0] == decision.state


@pytest.mark.parametrize("decision", [RETRY, HELD, release("drain")], ids=["retry", "held", "released"])
async def test_a_late_retry_hold_or_release_changes_nothing(decision: Decision, scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    await scene.upkeep.sweep(100, 1000)
    before = await scene.row(claim.id)
    assert not (await scene.settle(worker, claim, decision)).written
    assert await scene.row(claim.id) == before


@pytest.mark.parametrize("decision", [succeeded(None), DEAD, RETRY], ids=["succeeded", "dead", "retry"])
async def test_a_late_outcome_loses_once_the_task_was_claimed_again(decision: Decision, scene: Scene) -> None:
    zombie, heir = await scene.worker(), await scene.worker()
    (claim,) = await scene.running(zombie)
    await scene.lose(zombie)
    await scene.upkeep.sweep(100, 1000)
    (again,) = await heir.claim(TYPE, {claim.id: claim.version + 1}, suspects=True)
    assert not (await scene.settle(zombie, claim, decision)).written
    assert await scene.state(claim.id) == ("running", again.version)
    assert await scene.claims() == {(claim.id, again.version)}
    assert (await scene.settle(heir, again, succeeded(None))).written


async def test_a_batch_settles_each_task_its_own_way(scene: Scene) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker, 4)
    decisions = [succeeded({"n": 1}), RETRY, DEAD, HELD]
    # In no order of ids.
    batch = [Settlement(c.id, c.version, d) for c, d in zip(claims, decisions, strict=True)]
    answers = await worker.settle_all([batch[2], batch[0], batch[3], batch[1]])
    assert all(answer.written for answer in answers)
    states = [(await scene.state(claim.id))[0] for claim in claims]
    assert states == ["succeeded", "scheduled", "dead", "uncertain"]


@pytest.mark.parametrize("decisions", [[succeeded(None)] * 4, [succeeded({"n": 1}), RETRY, DEAD, HELD]])
async def test_a_batch_of_several_versions_settles_each_at_its_own(scene: Scene, decisions: list[Decision]) -> None:
    worker = await scene.worker()
    tasks = sorted(await scene.accepted(4))
    await scene.make_due(tasks[0], tasks[2])
    await scene.publishing.take(TYPE, 10)
    claims = await worker.claim(TYPE, dict(zip(tasks, (2, 1, 2, 1), strict=True)))
    versions = [claim.version for claim in claims]
    assert versions == [3, 2, 3, 2]
    wrong = [Settlement(claim.id, 5 - claim.version, each) for claim, each in zip(claims, decisions, strict=True)]
    assert await worker.settle_all(wrong) == [Settled(False)] * 4
    mixed = [
        wrong[0],
        *(Settlement(c.id, c.version, each) for c, each in list(zip(claims, decisions, strict=True))[1:]),
    ]
    answers = await worker.settle_all(mixed[::-1])
    assert [answer.written for answer in answers] == [True, True, True, False]
    assert all(answer.age > 0 for answer in answers if answer.written)
    assert await scene.state(tasks[0]) == ("running", 3)
    assert [(await scene.state(task)) for task in tasks[1:]] == [
        (each.state, version) for each, version in zip(decisions[1:], versions[1:], strict=True)
    ]


async def test_no_settlements_run_no_statement(scene: Scene) -> None:
    assert await (await scene.worker()).settle_all([]) == []


async def test_a_reason_that_postgresql_refuses_is_written_without_what_it_refuses(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    reason = "nul \x00, lone \ud800, pipe | and\nline"
    await scene.settle(worker, claim, Decision(Event.RETRY, State.SCHEDULED, error_class="Transient", reason=reason))
    assert (await scene.row(claim.id))["error_reason"] == "nul \ufffd, lone ?, pipe | and\nline"
    assert (await scene.timeline(claim.id))[-1]["note"] == "Transient: nul \ufffd, lone ?, pipe / and line"


async def test_the_timeline_keeps_the_beginning_of_a_long_reason_and_the_task_all_of_it(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    reason = "x" * 100_000
    await scene.settle(worker, claim, Decision(Event.RETRY, State.SCHEDULED, error_class="Crash", reason=reason))
    assert (await scene.row(claim.id))["error_reason"] == reason
    assert len((await scene.timeline(claim.id))[-1]["note"]) == NOTE_LENGTH


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, '{"at": "2026-01-01 00:00:00+00:00"}'),
        ({"x": {"y": {1}}}, '{"x": {"y": "{1}"}}'),
        ({"nul": "\x00\ud800"}, r'{"nul": "\u0000\ud800"}'),
        ({(1, 2): "no text"}, '{"(1, 2)": "no text"}'),
        ({"ratio": float("nan"), "rows": 12}, '{"ratio": "NaN", "rows": 12}'),
        ({"digits": 10**5000, "rows": 12}, '{"digits": "(an integer of 16610 bits)", "rows": 12}'),
    ],
    ids=["a date", "a set", "texts that jsonb refuses", "a key that is no text", "NaN", "digits"],
)
async def test_a_result_that_json_cannot_hold_does_not_lose_the_success(
    result: dict[str, object], kept: str, scene: Scene
) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    assert (await scene.settle(worker, claim, succeeded(result))).written
    assert (await scene.row(claim.id))["result"] == kept


async def test_one_row_that_cannot_be_stored_does_not_affect_the_199_others(scene: Scene) -> None:
    worker = await scene.worker()
    claims = await scene.running(worker, 200)
    commit: GroupCommit[Settlement, Settled] = GroupCommit(worker.settle_all)
    bad = Decision(Event.RETRY, State.SCHEDULED, 1e300)  # no interval is that long
    waiting = [
        commit.submit(Settlement(claim.id, claim.version, bad if place == 137 else succeeded(None)), claim.id)
        for place, claim in enumerate(claims)
    ]
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[137], RefusedData)
    assert all(isinstance(a, Settled) and a.written for place, a in enumerate(answers) if place != 137)
    assert await scene.claims() == {(claims[137].id, 2)}


async def test_a_settlement_of_a_deleted_task_is_not_written(scene: Scene) -> None:
    worker = await scene.worker()
    assert await worker.settle_all([Settlement(uuid4(), 2, succeeded(None))]) == [Settled(False)]


async def test_an_outcome_counts_though_its_worker_has_a_new_identity_before_its_claim_is_written(scene: Scene) -> None:
    """The claim was committed after its lease was ended, and no sweep has looked for it yet."""
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    await scene.sql("UPDATE claims SET attempt = 1")
    await scene.sql(
        "UPDATE tasks SET state = 'scheduled', version = 1, claim_version = NULL, attempts = 0,"
        " timeline = timeline[1:1]"
    )
    await worker.begin()
    assert (await scene.settle(worker, claim, succeeded(None))).written
    assert await scene.state(claim.id) == ("succeeded", 2)
