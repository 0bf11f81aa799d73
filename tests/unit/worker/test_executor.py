from __future__ import annotations

import asyncio
import gc
import json
import logging
import ssl
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BeforeValidator

from taskflux import Ambiguous, Misconfigured, Permanent, Receipt, Task, Transient, Unavailable
from taskflux.tasks.decision import FREE_RELEASES
from taskflux.tasks.errors import InvalidPayload, ProviderError, TaskError
from taskflux.tasks.policy import OPEN_AFTER
from taskflux.worker import executor
from taskflux.worker.attempt import Running
from taskflux.worker.executor import LAST_SETTLES
from tests.integration.store.scene import Scene
from tests.unit.worker.workplace import LEASE, Payload, Work, Workplace


def raising(error: BaseException) -> Work:
    """A handler that raises this."""

    async def work(task: Task[Payload]) -> Receipt:
        raise error

    return work


def returning(value: Any) -> Work:
    """A handler that returns this."""

    async def work(task: Task[Payload]) -> Receipt:
        return value  # type: ignore[no-any-return]

    return work


class Calls:
    """A handler that remembers the tasks it was called with, and waits for `go` if it is told to."""

    def __init__(self, *, waits: bool = False) -> None:
        self.tasks: list[Task[Payload]] = []
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        if not waits:
            self.go.set()

    async def __call__(self, task: Task[Payload]) -> Receipt:
        self.tasks.append(task)
        self.entered.set()
        await self.go.wait()
        return Receipt({"attempt": task.attempt})


# How an attempt ends -------------------------------------------------------------------------------------------------


async def test_a_task_whose_handler_returns_has_succeeded_with_its_result(scene: Scene) -> None:
    place = await Workplace.of(scene, returning(Receipt({"sent": True})))
    row = await scene.row(await place.run_one())
    assert (row["state"], row["attempts"], row["result"]) == ("succeeded", 1, '{"sent": true}')


async def test_a_handler_is_given_the_task_as_it_was_accepted(scene: Scene) -> None:
    calls = Calls()
    place = await Workplace.of(scene, calls)
    task = await place.run_one(payload='{"to": "ada"}', metadata='{"order": 7}', key="customer-1", max_attempts=5)
    (given,) = calls.tasks
    assert (given.id, given.type, given.payload) == (task, "email", Payload(to="ada"))
    assert (given.attempt, given.max_attempts, given.replay) == (1, 5, 0)
    assert (given.key, given.metadata, given.progress) == ("customer-1", {"order": 7}, {})


async def test_a_transient_error_is_retried_after_the_backoff_with_its_progress(scene: Scene) -> None:
    place = await Workplace.of(scene, raising(Transient("busy", progress={"reached": 2})))
    task = await place.run_one()
    row, due = await scene.row(task), await scene.due(task)
    assert (row["state"], row["attempts"], row["error_class"]) == ("scheduled", 1, "Transient")
    assert row["result"] == '{"reached": 2}'
    assert due is not None
    assert due["wait"] == pytest.approx(50.0, abs=5.0)  # half of first_delay, as the draw says


async def test_the_last_attempt_s_transient_error_is_a_dead_letter(scene: Scene) -> None:
    place = await Workplace.of(scene, raising(Transient("busy")))
    task = await place.run_one(max_attempts=1)
    assert (await scene.row(task))["state"] == "dead"
    assert await scene.due(task, dead=True) is not None


async def test_a_permanent_error_is_a_dead_letter_at_once(scene: Scene) -> None:
    place = await Workplace.of(scene, raising(Permanent("no such mailbox")))
    task = await place.run_one()
    row = await scene.row(task)
    assert (row["state"], row["error_class"], row["error_reason"]) == ("dead", "Permanent", "no such mailbox")
    assert await scene.due(task, dead=True) is not None


@pytest.mark.parametrize("error", [Unavailable("down"), Misconfigured("wrong password")])
async def test_a_failing_provider_costs_its_task_no_attempt(scene: Scene, error: ProviderError) -> None:
    place = await Workplace.of(scene, raising(error), client=object())
    row = await scene.row(await place.run_one())
    assert (row["state"], row["attempts"], row["error_class"]) == ("scheduled", 0, type(error).__name__)


@pytest.mark.parametrize(("others_succeed", "attempts"), [(True, 1), (False, 0)])
async def test_a_task_that_fails_while_its_provider_serves_others_pays_with_an_attempt_at_last(
    scene: Scene, others_succeed: bool, attempts: int
) -> None:
    async def work(task: Task[Payload]) -> Receipt:
        place.clock.now += 1
        if others_succeed:
            await place.gate.served(UUID(int=1))
        raise Unavailable("down")

    place = await Workplace.of(scene, work, client=object())
    (claim,) = await place.claim()
    place.begin(claim._replace(releases=FREE_RELEASES))
    await place.settled()
    row = await scene.row(claim.id)
    assert (row["state"], row["attempts"]) == ("scheduled", attempts)


@pytest.mark.parametrize(("policy", "state"), [("resend", "scheduled"), ("hold", "uncertain")])
async def test_an_ambiguous_error_is_sent_again_or_held_as_the_policy_says(
    scene: Scene, policy: Any, state: str
) -> None:
    place = await Workplace.of(scene, raising(Ambiguous("no answer")), ambiguous=policy)
    row = await scene.row(await place.run_one())
    assert (row["state"], row["attempts"], row["error_class"]) == (state, 1, "Ambiguous")


@pytest.mark.parametrize(("policy", "state"), [("resend", "scheduled"), ("hold", "uncertain")])
async def test_an_attempt_that_takes_too_long_is_cut_off_and_ambiguous(scene: Scene, policy: Any, state: str) -> None:
    place = await Workplace.of(scene, Calls(waits=True), ambiguous=policy, timeout=0.01)
    row = await scene.row(await place.run_one())
    assert (row["state"], row["error_class"]) == (state, "Ambiguous")
    assert row["error_reason"] == "it was cut off after 0.01 s"


async def test_what_a_handler_did_not_foresee_is_a_crash_whose_text_no_log_shows(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    place = await Workplace.of(scene, raising(RuntimeError("ada@example.org")))
    with caplog.at_level(logging.DEBUG):
        row = await scene.row(await place.run_one())
    assert (row["state"], row["error_class"]) == ("scheduled", "Crash")
    assert row["error_reason"] == "RuntimeError: ada@example.org"
    assert "a handler crashed" in caplog.text
    assert "ada@example.org" not in caplog.text


class Boom(BaseException):
    """What no `except Exception` catches."""


class Own(TaskError):
    """None of the kinds that a decision knows."""


class Mute(Exception):
    """An error that says nothing of itself, and whose class does not either."""

    def __getattribute__(self, name: str) -> Any:
        raise LookupError(name)

    def __str__(self) -> str:
        raise SystemExit(3)


class Quiet(Permanent):
    """A kind of a handler's own that forgets what its base wants to know."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class Odd(Transient):
    """A kind of a handler's own whose fields are not what they should be."""

    error_class = "x" * 10_000
    reason = property(lambda self: 10**5000)
    progress = 5  # type: ignore[assignment]
    retry_after = "soon"  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


async def cancelling_itself(task: Task[Payload]) -> Receipt:
    """Cancels the asyncio task that it runs in."""
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    await asyncio.sleep(0)
    return Receipt()


async def waiting_for_what_is_cancelled(task: Task[Payload]) -> Receipt:
    inner = asyncio.create_task(asyncio.sleep(30))
    await asyncio.sleep(0)
    inner.cancel()
    await inner
    return Receipt()


async def exiting_in_a_thread(task: Task[Payload]) -> Receipt:
    await asyncio.to_thread(sys.exit, 3)
    return Receipt()


async def timing_out(task: Task[Payload]) -> Receipt:
    async with asyncio.timeout(0):
        await asyncio.sleep(30)
    return Receipt()


UNFORESEEN: dict[str, tuple[Work, str]] = {
    "RuntimeError": (raising(RuntimeError("a bug")), "RuntimeError: a bug"),
    "SSLError": (raising(ssl.SSLError("after the request")), "SSLError: ('after the request',)"),
    "TimeoutError": (raising(TimeoutError("mine")), "TimeoutError: mine"),
    "a timeout of its own": (timing_out, "TimeoutError"),
    "BaseException": (raising(Boom("x")), "Boom: x"),
    "GeneratorExit": (raising(GeneratorExit("x")), "GeneratorExit: x"),
    "SystemExit": (raising(SystemExit(3)), "SystemExit: 3"),
    "SystemExit in a thread": (exiting_in_a_thread, "SystemExit: 3"),
    "KeyboardInterrupt": (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    "StopIteration": (raising(StopIteration()), "RuntimeError: coroutine raised StopIteration"),
    "MemoryError": (raising(MemoryError()), "MemoryError"),
    "a group": (
        raising(BaseExceptionGroup("mixed", [ValueError("x"), KeyboardInterrupt(), Permanent("y")])),
        "BaseExceptionGroup: mixed (3 sub-exceptions)",
    ),
    "CancelledError": (raising(asyncio.CancelledError()), "CancelledError"),
    "its own cancellation": (cancelling_itself, "CancelledError"),
    "a cancelled task of its own": (waiting_for_what_is_cancelled, "CancelledError"),
    "an error without a text": (raising(Mute()), "Mute: (its text cannot be read: SystemExit)"),
    "an enormous text": (raising(ValueError("x" * 10_000_000)), f"ValueError: {'x' * 9987}…"),
    "a text that is not storable": (raising(ValueError("\x00 \ud800")), "ValueError: \ufffd ?"),
    "none of the kinds": (raising(Own("odd")), "Own: odd"),
}


@pytest.mark.parametrize("name", UNFORESEEN)
@pytest.mark.parametrize(
    ("policy", "state", "error_class"), [("resend", "scheduled", "Crash"), ("hold", "uncertain", "Ambiguous")]
)
async def test_whatever_else_leaves_a_handler_is_a_crash_or_under_hold_ambiguous(
    scene: Scene, name: str, policy: Any, state: str, error_class: str
) -> None:
    work, reason = UNFORESEEN[name]
    place = await Workplace.of(scene, work, ambiguous=policy)
    row = await scene.row(await place.run_one())
    assert (row["state"], row["attempts"], row["error_class"]) == (state, 1, error_class)
    assert row["error_reason"] == reason


@pytest.mark.parametrize("policy", ["resend", "hold"])
async def test_a_kind_of_a_handler_s_own_counts_as_what_it_derives_from_whatever_its_fields_are(
    scene: Scene, policy: Any
) -> None:
    for error, state, error_class, reason in (
        (Quiet(7), "dead", "Quiet", "code 7"),
        (Odd(), "scheduled", "x" * 99 + "…", "(its text cannot be read: ValueError)"),
    ):
        place = await Workplace.of(scene, raising(error), ambiguous=policy)
        row = await scene.row(await place.run_one())
        assert (row["state"], row["error_class"], row["error_reason"]) == (state, error_class, reason)


@pytest.mark.parametrize("policy", ["resend", "hold"])
@pytest.mark.parametrize("kind", [Boom, SystemExit, asyncio.CancelledError, Mute, KeyboardInterrupt])
async def test_what_a_validator_raises_is_a_crash_under_either_policy_for_nothing_was_called(
    scene: Scene, policy: Any, kind: type[BaseException]
) -> None:
    calls = Calls()

    def validate(value: Any) -> Any:
        raise kind

    place = await Workplace.of(scene, calls, ambiguous=policy, payload=Annotated[Payload, BeforeValidator(validate)])
    row = await scene.row(await place.run_one())
    assert (row["state"], row["attempts"], row["error_class"], calls.tasks) == ("scheduled", 1, "Crash", [])


@pytest.mark.parametrize("policy", ["resend", "hold"])
@pytest.mark.parametrize("kind", [Boom, SystemExit, Mute])
async def test_what_a_provider_s_check_raises_is_a_crash_under_either_policy(
    scene: Scene, policy: Any, kind: type[BaseException]
) -> None:
    calls = Calls()

    class Client:
        async def check(self) -> None:
            raise kind

    place = await Workplace.of(scene, calls, client=Client(), ambiguous=policy)
    await scene.circuits.open("outside", "Unavailable", "down")
    await place.watch.refresh()
    row = await scene.row(await place.run_one(probe=True))
    assert (row["state"], row["error_class"], calls.tasks) == ("scheduled", "Crash", [])


async def test_a_failing_attempt_costs_its_neighbours_nothing(scene: Scene) -> None:
    """All that can leave a handler at once, and outcomes that share their statements with a good one."""

    async def work(task: Task[Payload]) -> Receipt:
        if task.payload.to == "good":
            await asyncio.sleep(0)
            return Receipt({"rows": 12})
        return await UNFORESEEN[task.payload.to][0](task) or Receipt()

    place = await Workplace.of(scene, work, concurrency=100)
    claims = [(await place.claim(payload=json.dumps({"to": to})))[0] for to in ["good", *UNFORESEEN, "good"]]
    place.begin(*claims)
    await place.settled()
    rows = [await scene.row(claim.id) for claim in claims]
    assert [row["state"] for row in rows] == ["succeeded", *["scheduled"] * len(UNFORESEEN), "succeeded"]


class Hostile(Receipt):
    """A receipt whose result cannot be had."""

    def __init__(self) -> None:
        pass

    @property
    def result(self) -> Any:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("receipt", "result"),
    [
        (Receipt({"digits": 10**5000, "rows": 12}), {"digits": "(an integer of 16610 bits)", "rows": 12}),
        (Receipt({"ratio": float("nan"), "rows": 12}), {"ratio": "NaN", "rows": 12}),
        (Receipt({"who": Mute(), "rows": 12}), {"who": "(its text cannot be read: SystemExit)", "rows": 12}),
        (Receipt(5), None),  # type: ignore[arg-type]
        (Receipt(Mute()), None),  # type: ignore[arg-type]
        (Hostile(), None),
        (Mute(), None),
    ],
    ids=["digits", "NaN", "no text", "no mapping", "no mapping, no text", "no result", "no receipt"],
)
async def test_a_success_is_one_whatever_its_receipt_contains(scene: Scene, receipt: Any, result: Any) -> None:
    place = await Workplace.of(scene, returning(receipt))
    row = await scene.row(await place.run_one())
    assert (row["state"], row["result"] and json.loads(row["result"])) == ("succeeded", result)


async def test_progress_that_json_does_not_know_is_noted_as_well_as_it_goes(scene: Scene) -> None:
    place = await Workplace.of(scene, raising(Transient("later", progress={"ratio": float("nan"), "rows": 12})))
    row = await scene.row(await place.run_one())
    assert (row["error_class"], row["result"]) == ("Transient", '{"ratio": "NaN", "rows": 12}')


# Cancellations -------------------------------------------------------------------------------------------------------


async def test_a_handler_that_cancels_itself_as_it_returns_has_succeeded(scene: Scene) -> None:
    async def work(task: Task[Payload]) -> Receipt:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        return Receipt({"rows": 12})

    for client in (None, object()):
        place = await Workplace.of(scene, work, client=client)
        if client is not None:
            await scene.circuits.open("outside", "Unavailable", "down")
            await place.watch.refresh()
        assert (await scene.row(await place.run_one(probe=True)))["state"] == "succeeded"


async def test_what_a_handler_has_left_behind_cannot_cut_off_its_outcome(scene: Scene) -> None:
    """It cancels the attempt while the provider's circuit is closed, and again while the outcome is written."""
    attempts: list[asyncio.Task[Any] | None] = []
    cancelled: list[str] = []

    async def work(task: Task[Payload]) -> Receipt:
        attempts.append(asyncio.current_task())
        return Receipt({"rows": 12})

    def cancel(where: str) -> Callable[[], Awaitable[None]]:
        async def now() -> None:
            (attempt,) = attempts
            assert attempt is not None
            cancelled.append(where)
            attempt.cancel()

        return now

    place = await Workplace.of(scene, work, client=object())
    await scene.circuits.open("outside", "Unavailable", "down")
    await place.watch.refresh()
    place.database.when |= {name: cancel(name) for name in ("close_circuit", "settle")}
    row = await scene.row(await place.run_one(probe=True))
    assert (row["state"], cancelled) == ("succeeded", ["close_circuit", "settle"])


async def test_a_task_that_is_cancelled_before_it_began_is_released(scene: Scene) -> None:
    """By whatever a neighbour does to all tasks of the loop: only a drain may say that the worker ended."""
    calls = Calls(waits=True)
    place = await Workplace.of(scene, calls, concurrency=1)
    begun, waiting, in_line = await place.claim(3)
    before = asyncio.all_tasks()
    place.begin(begun)
    await calls.entered.wait()
    place.begin(waiting, turn=asyncio.Event())
    place.begin(in_line)
    await asyncio.sleep(0)
    for attempt in asyncio.all_tasks() - before:
        attempt.cancel()
    calls.go.set()
    await place.settled()
    assert [task.id for task in calls.tasks] == [begun.id, in_line.id]  # which no asyncio task had begun with
    row = await scene.row(waiting.id)
    assert (row["state"], row["attempts"]) == ("scheduled", 0)
    assert row["error_reason"] == "it was cancelled before it began"
    assert (await scene.row(begun.id))["error_reason"] == "CancelledError"
    assert (await scene.row(in_line.id))["state"] == "succeeded"


class Stubborn:
    """A handler that ignores that it is cancelled, until `go`."""

    def __init__(self, last: BaseException | None = None) -> None:
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = 0
        self.last = last

    async def __call__(self, task: Task[Payload]) -> Receipt:
        self.entered.set()
        while not self.go.is_set():
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        if self.last is not None:
            raise self.last
        return Receipt()


@pytest.mark.parametrize(("policy", "state"), [("resend", "scheduled"), ("hold", "uncertain")])
async def test_a_handler_that_ignores_its_timeout_is_abandoned_and_takes_no_slot(
    scene: Scene, policy: Any, state: str
) -> None:
    stubborn = Stubborn()
    place = await Workplace.of(scene, stubborn, ambiguous=policy, timeout=0.01, concurrency=1, patience=0.01)
    before = asyncio.all_tasks()
    row = await scene.row(await place.run_one())
    assert (row["state"], row["attempts"], row["error_class"]) == (state, 1, "Ambiguous")
    assert row["error_reason"] == "it was cut off after 0.01 s, and did not end"
    assert stubborn.cancelled == 2
    (left,) = {each for each in asyncio.all_tasks() - before if "_run" in repr(each)}
    other = await scene.row(await place.run_one())  # the only slot is free again
    assert other["error_reason"] == "it was cut off after 0.01 s, and did not end"
    stubborn.go.set()
    await asyncio.wait([left])
    assert (await scene.row(row["id"]))["state"] == state  # what it says now counts for nothing
    assert place.executor.in_flight == 0


class Unwilling(asyncio.Future[None]):
    """What a handler waits for and nobody can cancel."""

    def cancel(self, msg: Any = None) -> bool:
        raise SystemExit(3)


async def test_a_handler_that_waits_for_what_cannot_be_cancelled_is_abandoned(scene: Scene) -> None:
    forever = Unwilling()

    async def work(task: Task[Payload]) -> Receipt:
        entered.set()
        await forever
        return Receipt()

    entered = asyncio.Event()
    place = await Workplace.of(scene, work, timeout=0.01, patience=0.01)
    row = await scene.row(await place.run_one())
    assert row["error_reason"] == "it was cut off after 0.01 s, and did not end"
    place = await Workplace.of(scene, work)
    (claim,) = await place.claim()
    entered.clear()
    place.begin(claim)
    await entered.wait()
    await place.executor.drain(0.0, asyncio.Event(), last_cut=0.01)
    assert (await scene.row(claim.id))["error_reason"] == "it was cut off when its worker ended, and did not end"
    forever.set_result(None)


async def test_after_a_drain_nothing_tries_to_write_what_postgresql_cannot_store(scene: Scene) -> None:
    place = await Workplace.of(scene, returning(Receipt()))
    (claim,) = await place.claim()
    place.database.unreachable.add("settle")
    before = asyncio.all_tasks()
    place.begin(claim)
    await place.database.failed.wait()
    await place.executor.drain(0.0, asyncio.Event(), last_cut=LAST_SETTLES)
    await asyncio.wait(asyncio.all_tasks() - before, timeout=20)
    assert asyncio.all_tasks() == before
    assert (await scene.state(claim.id))[0] == "running"


async def test_attempts_that_have_ended_are_not_kept_until_they_would_be_late(scene: Scene) -> None:
    def kept() -> int:
        gc.collect()
        return sum(type(each) is Running for each in gc.get_objects())

    before = kept()
    place = await Workplace.of(scene, Calls(), timeout=60.0)
    place.begin(*await place.claim(5))
    await place.settled()
    assert kept() == before


async def test_a_handler_that_answers_its_timeout_with_a_success_has_succeeded(scene: Scene) -> None:
    async def work(task: Task[Payload]) -> Receipt:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return Receipt({"rows": 12})
        return Receipt()

    place = await Workplace.of(scene, work, timeout=0.01)
    assert (await scene.row(await place.run_one()))["result"] == '{"rows": 12}'


@pytest.mark.parametrize("error", [RuntimeError("x"), SystemExit(3), BaseExceptionGroup("x", [Boom("y")])])
async def test_what_a_handler_makes_of_its_timeout_is_the_timeout(scene: Scene, error: BaseException) -> None:
    async def work(task: Task[Payload]) -> Receipt:
        try:
            await asyncio.sleep(30)
        finally:
            raise error

    place = await Workplace.of(scene, work, timeout=0.01)
    row = await scene.row(await place.run_one())
    assert (row["error_class"], row["error_reason"]) == ("Ambiguous", "it was cut off after 0.01 s")


@pytest.mark.parametrize(("policy", "state"), [("resend", "scheduled"), ("hold", "uncertain")])
async def test_a_handler_that_ignores_the_drain_does_not_keep_its_outcome(
    scene: Scene, policy: Any, state: str
) -> None:
    stubborn = Stubborn()
    place = await Workplace.of(scene, stubborn, ambiguous=policy)
    (claim,) = await place.claim()
    place.begin(claim)
    await stubborn.entered.wait()
    await place.executor.drain(0.0, asyncio.Event(), last_cut=0.01)
    row = await scene.row(claim.id)
    assert (row["state"], row["attempts"], row["error_class"]) == (state, 1, "Ambiguous")
    assert row["error_reason"] == "it was cut off when its worker ended, and did not end"
    stubborn.go.set()


async def test_a_task_that_exits_during_the_drain_is_cut_off_like_all_others(scene: Scene) -> None:
    async def work(task: Task[Payload]) -> Receipt:
        entered.set()
        try:
            await asyncio.sleep(30)
        finally:
            sys.exit(3)

    entered = asyncio.Event()
    place = await Workplace.of(scene, work)
    (claim,) = await place.claim()
    place.begin(claim)
    await entered.wait()
    await place.executor.drain(0.0, asyncio.Event())
    assert (await scene.row(claim.id))["error_reason"] == "it was cut off when its worker ended"


# How a success ends that is not a receipt ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["done", 7, {"sent": True}])
async def test_a_result_that_is_not_a_receipt_is_still_a_success(scene: Scene, value: object) -> None:
    place = await Workplace.of(scene, returning(value))
    row = await scene.row(await place.run_one())
    assert (row["state"], row["result"]) == ("succeeded", None)


@pytest.mark.parametrize(("error", "opens"), [(InvalidPayload("too large"), True), (Permanent("refused"), False)])
async def test_what_did_not_call_its_provider_is_not_a_sign_that_it_serves(
    scene: Scene, error: TaskError, opens: bool
) -> None:
    place = await Workplace.of(scene, raising(error), client=object())
    since = place.clock.now
    for number in range(OPEN_AFTER):
        await place.gate.failed(UUID(int=number), Unavailable("down"), since)
        if number == 0:
            await place.run_one()
    assert place.gate.open is opens


# What is not run at all ----------------------------------------------------------------------------------------------


async def test_a_payload_that_was_not_declared_is_dead_without_a_call(scene: Scene) -> None:
    calls = Calls()
    place = await Workplace.of(scene, calls)
    row = await scene.row(await place.run_one(payload='{"too": "x"}'))
    assert (row["state"], row["error_class"], calls.tasks) == ("dead", "InvalidPayload", [])


async def test_a_task_past_its_expiry_is_dead_without_a_call(scene: Scene) -> None:
    calls = Calls()
    place = await Workplace.of(scene, calls)
    row = await scene.row(await place.run_one(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert (row["state"], row["error_class"], row["attempts"], calls.tasks) == ("dead", "Expired", 0, [])


async def test_a_worker_that_could_not_renew_its_lease_starts_no_side_effect(scene: Scene) -> None:
    calls = Calls()
    place = await Workplace.of(scene, calls)
    place.clock.now += LEASE
    row = await scene.row(await place.run_one())
    assert (row["state"], row["attempts"], calls.tasks) == ("scheduled", 0, [])
    assert row["error_reason"] == "the worker could not renew its lease"


async def test_a_claim_of_a_lease_before_the_present_one_starts_no_side_effect(scene: Scene) -> None:
    """After a gap somebody else may hold the task, though this worker has beaten again."""
    calls = Calls()
    place = await Workplace.of(scene, calls)
    (claim,) = await place.claim()
    term = place.lease.term
    place.clock.now += LEASE
    await place.lease.renew(1)
    place.begin(claim, term=term)
    await place.settled()
    assert ((await scene.row(claim.id))["state"], calls.tasks) == ("scheduled", [])


async def test_a_lease_that_expires_during_the_wait_for_a_turn_starts_no_side_effect(scene: Scene) -> None:
    calls = Calls()

    class Slow:
        async def check(self) -> None:
            place.clock.now += LEASE

    place = await Workplace.of(scene, calls, client=Slow())
    await scene.circuits.open("outside", "Unavailable", "down")
    await place.watch.refresh()
    row = await scene.row(await place.run_one(probe=True))
    assert (row["state"], row["error_reason"], calls.tasks) == (
        "scheduled",
        "the worker could not renew its lease",
        [],
    )


async def test_a_worker_without_its_lease_does_not_even_probe_its_provider(scene: Scene) -> None:
    checks: list[str] = []

    class Client:
        async def check(self) -> None:
            checks.append("checked")

    place = await Workplace.of(scene, Calls(), client=Client())
    await scene.circuits.open("outside", "Unavailable", "down")
    await place.watch.refresh()
    place.clock.now += LEASE
    await place.run_one(probe=True)
    assert (checks, place.gate.open) == ([], True)


async def test_while_the_circuit_is_open_tasks_are_released_uncalled(scene: Scene) -> None:
    calls = Calls()
    place = await Workplace.of(scene, calls, client=object())
    await scene.circuits.open("outside", "Unavailable", "down")
    await place.watch.refresh()
    row = await scene.row(await place.run_one())
    assert (row["state"], row["attempts"], calls.tasks) == ("scheduled", 0, [])


# Many at once, and the end -------------------------------------------------------------------------------------------


async def test_no_more_run_at_once_than_the_concurrency_allows(scene: Scene) -> None:
    running, most = 0, 0
    full, go = asyncio.Event(), asyncio.Event()

    async def work(task: Task[Payload]) -> Receipt:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            full.set()
        await go.wait()
        running -= 1
        return Receipt()

    place = await Workplace.of(scene, work, concurrency=2)
    claims = await place.claim(4)
    place.begin(*claims)
    assert (place.executor.room, place.executor.in_flight) == (0, 4)
    room = asyncio.create_task(place.executor.wait_for_room())
    await full.wait()
    assert not room.done()
    go.set()
    await place.settled()
    await room
    assert (most, place.executor.room) == (2, 4)


@pytest.mark.parametrize(("claims", "room"), [(0, 20), (10, 10), (15, 5), (16, 0), (20, 0)])
async def test_no_few_claims_are_taken_while_enough_are_in_line(scene: Scene, claims: int, room: int) -> None:
    calls = Calls(waits=True)
    place = await Workplace.of(scene, calls, concurrency=10)
    place.begin(*(await place.claim(claims) if claims else []))
    assert place.executor.room == room
    calls.go.set()
    await place.settled()
    assert place.executor.room == 20


async def test_outcomes_that_wait_for_postgresql_take_room_beyond_two_batches(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "SETTLE_BATCH", 2)
    ended, go = asyncio.Semaphore(0), asyncio.Event()

    async def work(task: Task[Payload]) -> None:
        ended.release()

    place = await Workplace.of(scene, work, concurrency=3)
    place.database.when["settle"] = go.wait
    rooms = []
    for count in (4, 8):
        place.begin(*await place.claim(count))
        for _ in range(count):
            await asyncio.wait_for(ended.acquire(), 20)
        await asyncio.sleep(0)
        rooms.append(place.executor.room)
    go.set()
    await place.settled()
    assert rooms == [6, 0]


async def test_a_drain_releases_what_has_not_begun_and_lets_the_rest_end(scene: Scene) -> None:
    calls = Calls(waits=True)
    place = await Workplace.of(scene, calls, concurrency=1)
    first, second = await place.claim(2)
    place.begin(first, second)
    await calls.entered.wait()
    drained = asyncio.create_task(place.executor.drain(60.0, asyncio.Event()))
    await asyncio.sleep(0)
    calls.go.set()
    await drained
    rows = {row["id"]: row for row in [await scene.row(first.id), await scene.row(second.id)]}
    begun = calls.tasks[0].id
    (waiting,) = {first.id, second.id} - {begun}
    assert (len(calls.tasks), rows[begun]["state"]) == (1, "succeeded")
    assert (rows[waiting]["state"], rows[waiting]["attempts"]) == ("scheduled", 0)
    assert rows[waiting]["error_reason"] == "the worker ended before it began"


@pytest.mark.parametrize(("policy", "state"), [("resend", "scheduled"), ("hold", "uncertain")])
@pytest.mark.parametrize("how", ["its time is up", "asked twice"])
async def test_what_outlasts_the_drain_is_cut_off_and_ambiguous(
    scene: Scene, policy: Any, state: str, how: str
) -> None:
    calls = Calls(waits=True)
    place = await Workplace.of(scene, calls, ambiguous=policy)
    (claim,) = await place.claim()
    place.begin(claim)
    await calls.entered.wait()
    hurry = asyncio.Event()
    if how == "asked twice":
        hurry.set()
    await place.executor.drain(60.0 if hurry.is_set() else 0.0, hurry)
    row = await scene.row(claim.id)
    assert (row["state"], row["attempts"], row["error_class"]) == (state, 1, "Ambiguous")
    assert row["error_reason"] == "it was cut off when its worker ended"


async def test_what_a_handler_has_said_is_not_cut_off_by_a_drain(scene: Scene) -> None:
    """Its provider's circuit learns of it first, which PostgreSQL may take its time for."""
    closing, go = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        closing.set()
        await go.wait()

    place = await Workplace.of(scene, returning(Receipt()), client=object())
    await scene.circuits.open("outside", "Unavailable", "down")
    await place.watch.refresh()
    place.database.when["close_circuit"] = slow
    (claim,) = await place.claim()
    place.begin(claim, probe=True)
    await closing.wait()
    drained = asyncio.create_task(place.executor.drain(0.0, asyncio.Event()))
    await asyncio.wait([drained], timeout=0.01)
    go.set()
    await drained
    assert (await scene.row(claim.id))["state"] == "succeeded"


# After the lease -----------------------------------------------------------------------------------------------------


async def lost_while_it_runs(place: Workplace, calls: Calls) -> Any:
    """A claim that runs while its worker's lease expires and the sweep frees it."""
    (claim,) = await place.claim()
    place.begin(claim)
    await calls.entered.wait()
    await place.scene.lose(place.claims)
    await place.scene.upkeep.sweep(10, 1000.0)
    assert (await place.scene.state(claim.id))[0] == "scheduled"
    return claim


async def test_a_late_outcome_wins_until_the_task_is_claimed_again(scene: Scene) -> None:
    calls = Calls(waits=True)
    place = await Workplace.of(scene, calls)
    claim = await lost_while_it_runs(place, calls)
    calls.go.set()
    await place.settled()
    assert (await scene.row(claim.id))["state"] == "succeeded"


async def test_a_late_outcome_changes_nothing_once_the_task_is_claimed_again(scene: Scene) -> None:
    calls = Calls(waits=True)
    place = await Workplace.of(scene, calls)
    claim = await lost_while_it_runs(place, calls)
    other = await scene.worker()
    _, version = await scene.state(claim.id)
    (again,) = await other.claim("email", {claim.id: version}, suspects=True)
    calls.go.set()
    await place.settled()
    assert await scene.state(claim.id) == ("running", again.version)
    assert await scene.holder(claim.id) == other.worker.id


async def test_one_task_may_run_here_twice_once_its_lease_was_lost(scene: Scene) -> None:
    calls = Calls(waits=True)
    place = await Workplace.of(scene, calls)
    claim = await lost_while_it_runs(place, calls)
    await place.lease.renew(1)
    _, version = await scene.state(claim.id)
    (again,) = await place.claims.claim("email", {claim.id: version}, suspects=True)
    place.begin(again)
    assert place.executor.in_flight == 2
    assert place.executor.holds(claim.id, claim.version)
    assert place.executor.holds(claim.id, again.version)
    calls.go.set()
    await place.settled()
    assert [task.attempt for task in calls.tasks] == [1, 1]  # the loss gave it back
    assert (await scene.row(claim.id))["state"] == "succeeded"


# Large payloads ------------------------------------------------------------------------------------------------------


async def test_a_large_payload_is_read_when_its_task_begins(scene: Scene) -> None:
    calls = Calls()
    place = await Workplace.of(scene, calls)
    name = "x" * 500_000
    (claim,) = await place.claim(payload=json.dumps({"to": name}))
    assert (claim.payload, claim.size) == (None, 500_010)
    place.begin(claim)
    await place.settled()
    assert [task.payload.to for task in calls.tasks] == [name]
    assert (await scene.row(claim.id))["state"] == "succeeded"


class AtOnce:
    """Work that goes on until `full` says that no more of it can be begun; `most` is how many went on at once."""

    def __init__(self, full: int) -> None:
        self.most = 0
        self._full = full
        self._now = 0
        self._entered = asyncio.Condition()

    async def __call__(self, task: Task[Any]) -> Receipt:
        async with self._entered:
            self._now += 1
            self.most = max(self.most, self._now)
            self._entered.notify_all()
            await self._entered.wait_for(lambda: self.most >= self._full)
        for _ in range(100):  # whoever has room beside it begins meanwhile
            await asyncio.sleep(0)
        self._now -= 1
        return Receipt()


async def test_so_many_bytes_of_large_payloads_are_in_a_worker_at_once(scene: Scene) -> None:
    large_work = AtOnce(2)

    async def work(task: Task[Payload]) -> Receipt:
        return await large_work(task) if len(task.payload.to) > 100 else Receipt()

    place = await Workplace.of(scene, work, payload_bytes=2_500_000)
    large = await place.claim(8, payload=json.dumps({"to": "x" * 400_000}))
    small = await place.claim(8, payload=json.dumps({"to": "x"}))
    place.begin(*large, *small)
    await place.settled()
    assert large_work.most == 2
    assert {(await scene.row(claim.id))["state"] for claim in [*large, *small]} == {"succeeded"}


async def test_a_small_payload_does_not_pass_a_large_one_that_waits_for_room(scene: Scene) -> None:
    order, entered, go = [], asyncio.Event(), asyncio.Event()

    async def work(task: Task[Payload]) -> Receipt:
        order.append(len(task.payload.to))
        entered.set()
        await go.wait()
        return Receipt()

    place = await Workplace.of(scene, work, payload_bytes=1_500_000)
    sizes = [400_000, 600_000, 5_000]
    claims = [claim for size in sizes for claim in await place.claim(payload=json.dumps({"to": "x" * size}))]
    place.begin(*claims)
    await entered.wait()
    for _ in range(100):  # what has room begins meanwhile
        await asyncio.sleep(0)
    assert order == sizes[:1]
    go.set()
    await place.settled()
    assert sorted(order) == sorted(sizes)


async def test_values_of_payloads_take_room_too(scene: Scene) -> None:
    work = AtOnce(2)
    place = await Workplace.of(scene, work, payload=Any, payload_bytes=5_000_000)
    kinds = ["[" + "[]," * 10_000 + "[]]", "[" + "[]," * 30_000 + "[]]"]  # some come with their claims, some do not
    claims = [claim for payload in kinds for claim in await place.claim(3, payload=payload)]
    assert [claim.payload is None for claim in claims] == [False] * 3 + [True] * 3
    place.begin(*claims)
    await place.settled()
    assert work.most == 2
    assert {(await scene.row(claim.id))["state"] for claim in claims} == {"succeeded"}


async def test_a_payload_larger_than_its_type_takes_is_a_dead_letter_and_never_read(scene: Scene) -> None:
    calls = Calls()
    place = await Workplace.of(scene, calls)
    (claim,) = await place.claim(payload=json.dumps({"to": "x" * 1_100_000}))
    place.begin(claim)
    await place.settled()
    row = await scene.row(claim.id)
    assert (row["state"], row["error_class"], calls.tasks) == ("dead", "InvalidPayload", [])
    assert "1,048,576 at most" in row["error_reason"]
    assert place.database.ran["payload"] == 0


@pytest.mark.parametrize("payload", ['{"to":[' + "[]," * 200_000 + "[]]}", '{"to":' + "[" * 70 + "]" * 70 + "}"])
async def test_a_payload_out_of_bounds_is_a_dead_letter(payload: str, scene: Scene) -> None:
    place = await Workplace.of(scene, Calls())
    row = await scene.row(await place.run_one(payload=payload))
    assert (row["state"], row["error_class"]) == ("dead", "InvalidPayload")


async def test_a_large_payload_is_waited_for_while_postgresql_is_unreachable(scene: Scene) -> None:
    place = await Workplace.of(scene, Calls())
    (claim,) = await place.claim(payload=json.dumps({"to": "x" * 400_000}))
    place.database.unreachable.add("payload")
    place.begin(claim)
    await place.database.failed.wait()
    place.database.unreachable.clear()
    await place.settled()
    row = await scene.row(claim.id)
    assert (row["state"], row["attempts"]) == ("succeeded", 1)


async def test_a_drain_releases_what_waits_for_room(scene: Scene) -> None:
    calls = Calls(waits=True)
    place = await Workplace.of(scene, calls, payload_bytes=1_500_000)
    claims = await place.claim(3, payload=json.dumps({"to": "x" * 400_000}))
    place.begin(*claims)
    await calls.entered.wait()
    draining = asyncio.create_task(place.executor.drain(20, asyncio.Event()))
    await asyncio.sleep(0)
    calls.go.set()
    await draining
    states = sorted([(await scene.row(claim.id))["state"] for claim in claims])
    assert states == ["scheduled", "scheduled", "succeeded"]
