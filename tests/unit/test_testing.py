from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from taskflux import Ambiguous, Misconfigured, Permanent, Receipt, RetryPolicy, Task, Transient, handler, provider
from taskflux.testing import Call, Decision, Event, FakeClient, State, arun_once, run_once


class Charge(BaseModel):
    cents: Annotated[int, Field(ge=1, alias="amount")]
    at: datetime | None = None


class NoSettings(BaseModel):
    pass


class Billing(Protocol):
    async def charge(self, cents: int, *, key: str) -> str: ...

    def rate(self) -> float: ...


@provider("billing", settings=NoSettings)
@asynccontextmanager
async def billing(settings: NoSettings) -> AsyncIterator[Billing]:
    raise NotImplementedError
    yield


RETRY = RetryPolicy(max_attempts=3, first_delay=10.0)


@handler("charge", payload=Charge, provider=billing, retry=RETRY, ambiguous="hold")
async def charge(task: Task[Charge], client: Billing) -> Receipt:
    return Receipt({"id": await client.charge(task.payload.cents, key=task.side_effect_id), "rate": client.rate()})


@handler("echo", payload=Any, retry=RETRY, timeout=0.05)
async def echo(task: Task[Any]) -> Receipt:
    """Does what its payload says."""
    match task.payload:
        case {"raise": reason}:
            raise Transient(reason, progress={"done": [*task.progress.get("done", []), task.attempt]})  # type: ignore[misc]
        case {"sleep": seconds}:
            await asyncio.sleep(seconds)
        case {"exit": status}:
            sys.exit(status)
        case {"see": fields}:
            return Receipt({each: getattr(task, each) for each in fields})
        case "leave a task behind":
            asyncio.create_task(asyncio.sleep(3600), name="left")  # noqa: RUF006
    return Receipt({"payload": task.payload})


# What follows an attempt ---------------------------------------------------------------------------------------------


def test_a_success_is_the_decision_that_a_worker_would_take_with_the_result() -> None:
    decision = run_once(echo, {"a": [1, None]})
    assert decision == Decision(Event.SUCCEEDED, State.SUCCEEDED, result={"payload": {"a": [1, None]}})
    assert decision.progress is None


def test_a_payload_that_does_not_fit_is_a_dead_letter_whose_reason_names_each_field() -> None:
    decision = run_once(charge, {"at": "now"}, client=object())
    assert (decision.event, decision.state, decision.error_class) == (Event.DIED, "dead", "InvalidPayload")
    assert decision.reason is not None
    assert decision.reason.startswith("amount: is required; at: ")


def test_a_payload_is_held_against_the_limits_of_its_type() -> None:
    decision = run_once(echo, ["x" * 2_000_000])
    assert (decision.state, decision.error_class) == ("dead", "InvalidPayload")
    assert decision.reason is not None
    assert "1,048,576 at most" in decision.reason
    assert run_once(echo, "x" * 900_000).state == "succeeded"  # large ones wait for room first


def test_an_error_is_retried_with_the_longest_delay_of_its_attempt_until_the_attempts_are_spent() -> None:
    decisions = [run_once(echo, {"raise": "busy"}, attempt=attempt) for attempt in (1, 2, 3)]
    assert [(each.event, each.state, each.delay) for each in decisions] == [
        ("retry", "scheduled", 10.0),
        ("retry", "scheduled", 20.0),
        ("died", "dead", 0.0),
    ]
    assert {(each.error_class, each.reason) for each in decisions} == {("Transient", "busy")}


def test_progress_of_earlier_attempts_is_passed_in_and_that_of_this_one_read_from_the_decision() -> None:
    decision = run_once(echo, {"raise": "busy"}, attempt=2, progress={"done": [1]})
    assert decision.progress == {"done": [1, 2]}


def test_a_handler_is_cut_off_after_its_timeout_or_the_one_that_the_test_gives() -> None:
    decision = run_once(echo, {"sleep": 3600})
    assert (decision.event, decision.error_class, decision.reason) == (
        *("retry", "Ambiguous"),
        "it was cut off after 0.05 s",
    )
    assert run_once(echo, {"sleep": 3600}, timeout=0.01).reason == "it was cut off after 0.01 s"
    assert run_once(echo, {"sleep": 0.1}, timeout=60).state == "succeeded"


def test_what_a_handler_does_not_foresee_is_a_crash_and_never_leaves_run_once() -> None:
    decision = run_once(echo, {"exit": 3})
    assert (decision.event, decision.error_class, decision.reason) == ("retry", "Crash", "SystemExit: 3")


@pytest.mark.parametrize(
    ("answer", "state", "error_class", "reason"),
    [
        (Ambiguous("no answer"), "uncertain", "Ambiguous", "no answer"),
        (RuntimeError("a bug"), "uncertain", "Ambiguous", "RuntimeError: a bug"),
        (Permanent("no such card"), "dead", "Permanent", "no such card"),
        (Misconfigured("wrong key"), "scheduled", "Misconfigured", "wrong key"),
    ],
)
def test_each_error_of_a_client_is_judged_by_the_policy_of_the_handler(
    answer: Exception, state: str, error_class: str, reason: str
) -> None:
    decision = run_once(charge, {"amount": 500}, client=FakeClient(Billing, charge=answer))
    assert (decision.state, decision.error_class, decision.reason) == (state, error_class, reason)
    assert decision.give_back is (error_class == "Misconfigured")


# What the handler is given -------------------------------------------------------------------------------------------


def test_a_handler_sees_the_fields_that_a_test_chooses() -> None:
    fields = ["id", "type", "attempt", "max_attempts", "replay", "tenant", "key", "metadata", "side_effect_id"]
    seen = run_once(echo, {"see": fields}).result
    assert seen is not None
    assert [seen[each] for each in fields[1:-1]] == ["echo", 1, 3, 0, "default", None, {}]
    assert seen["side_effect_id"] == str(seen["id"])
    chosen = {"id": UUID(int=7), "max_attempts": 9, "replay": 2, "tenant": "a", "key": "k", "metadata": {"order": 1}}
    result = run_once(echo, {"see": [*chosen, "side_effect_id"]}, attempt=9, **chosen).result  # type: ignore[arg-type]
    assert result == {**chosen, "side_effect_id": f"{UUID(int=7)}.2"}


def test_a_handler_sees_the_time_that_a_test_chooses_and_one_without_a_zone_is_utc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @handler("when", payload=str)
    async def when(task: Task[str]) -> Receipt:
        return Receipt({"at": task.created_at.isoformat()})

    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        for zone in (None, UTC):
            result = run_once(when, "", created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, zone)).result
            assert result == {"at": "2026-01-02T03:04:05.678901+00:00"}
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_payload_may_be_a_model_which_is_written_as_json_first() -> None:
    at = datetime(2026, 11, 30, tzinfo=UTC)
    fake = FakeClient(Billing, charge=lambda cents, key: f"ch_{cents}", rate=0.5)
    decision = run_once(charge, Charge.model_validate({"amount": 500, "at": at}), client=fake, id=UUID(int=1))
    assert decision.result == {"id": "ch_500", "rate": 0.5}
    assert fake.calls == [Call("charge", (500,), {"key": str(UUID(int=1))}), Call("rate")]


# Plain functions -----------------------------------------------------------------------------------------------------


@handler("digest", payload=Any)
def digest(task: Task[Any]) -> Receipt:
    return Receipt({"thread": threading.current_thread().name})


def test_a_plain_function_runs_in_a_thread_that_ends_with_the_test() -> None:
    decision = run_once(digest, {})
    assert decision.result == {"thread": "blocking-digest-1"}
    for thread in threading.enumerate():
        if thread.name == "blocking-digest-1":
            thread.join(10)
            assert not thread.is_alive()


def test_a_plain_function_that_does_not_return_is_ambiguous_and_python_still_ends() -> None:
    program = """
import time
from typing import Any
from taskflux import Task, handler
from taskflux.testing import run_once

@handler("stuck", payload=Any, timeout=0.05, ambiguous="hold")
def stuck(task: Task[Any]) -> None:
    time.sleep(3600)

decision = run_once(stuck, {})
print(decision.state, decision.error_class, decision.reason)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    said = "uncertain Ambiguous its thread had not returned after 0.05 s\n"
    assert (done.stdout, done.returncode) == (said, 0), done.stderr


# Mistakes ------------------------------------------------------------------------------------------------------------


async def test_inside_an_event_loop_arun_once_does_the_same_and_run_once_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"while an event loop runs: use `await arun_once\(…\)`"):
        run_once(echo, {})
    assert (await arun_once(echo, {"raise": "busy"})).event == "retry"


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: run_once(charge, {"amount": 5}),
            TypeError,
            "'charge' uses the provider 'billing': pass a",
        ),
        (lambda: run_once(echo, {}, client=object()), TypeError, "'echo' declares no provider: leave `client` out"),
        (lambda: run_once(charge.function, {}), TypeError, "what `@handler` made of a function, not <function charge"),  # type: ignore[arg-type]
        (lambda: run_once(echo, {}, attempt=0), ValueError, "attempt is 0: it can be 1 to 3"),
        (lambda: run_once(echo, {}, attempt=4), ValueError, "attempt is 4: it can be 1 to 3"),
        (lambda: run_once(echo, {}, timeout=0), ValueError, "timeout is 0"),
        (lambda: run_once(echo, {}, tenent="a"), TypeError, "tenent"),  # type: ignore[call-arg]
        (lambda: run_once(echo, float("nan")), ValueError, "the payload cannot be written as JSON"),
        (lambda: run_once(echo, object()), ValueError, "the payload cannot be written as JSON"),
    ],
)
def test_a_mistake_of_the_test_is_told_in_a_sentence(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


async def test_an_attempt_ends_when_its_test_is_cancelled() -> None:
    before = asyncio.all_tasks()
    attempt = asyncio.create_task(arun_once(echo, {"sleep": 3600}, timeout=3600))
    await asyncio.wait([attempt], timeout=0.05)
    assert len(asyncio.all_tasks() - before) == 2
    attempt.cancel()
    await asyncio.wait([attempt])
    assert attempt.cancelled()
    assert asyncio.all_tasks() == before


def test_what_a_handler_leaves_behind_does_not_keep_the_test_waiting() -> None:
    assert run_once(echo, "leave a task behind").state == "succeeded"


def test_a_task_that_ignores_its_cancellation_does_not_keep_the_test_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async def never_ends() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue

    @handler("stubborn", payload=Any)
    async def stubborn(task: Task[Any]) -> None:
        left.append(asyncio.create_task(never_ends()))
        await asyncio.sleep(0)

    left: list[asyncio.Task[None]] = []
    began = time.monotonic()
    assert run_once(stubborn, {}).state == "succeeded"
    assert time.monotonic() - began < 10
    left.clear()
    gc.collect()


# Fakes ---------------------------------------------------------------------------------------------------------------


async def test_a_fake_takes_the_arguments_of_the_class_and_has_only_its_methods() -> None:
    fake = FakeClient(Billing, charge="ch_1")
    assert await fake.charge(5, key="k") == "ch_1"
    with pytest.raises(TypeError, match="missing a required argument: 'key'"):
        await fake.charge(5)
    with pytest.raises(TypeError, match=r"no answer for 'rate': make it with FakeClient\(Billing, rate=…\)"):
        fake.rate()
    with pytest.raises(AttributeError, match="'Billing' object has no attribute 'refund'"):
        fake.refund()
    with pytest.raises(TypeError, match="Billing has no method 'refund'"):
        FakeClient(Billing, refund=None)
    assert fake.calls == [Call("charge", (5,), {"key": "k"})]


def test_a_test_needs_no_server_and_no_setting() -> None:
    program = """
from taskflux.handlers.process_simulated import process_simulated
from taskflux.testing import run_once
print(run_once(process_simulated, {"simulateFail": True}).reason)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, env={})
    assert (done.stdout, done.returncode) == ("this failure was asked for\n", 0), done.stderr
