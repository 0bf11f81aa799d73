"""Handlers that are plain functions: they run in threads, which nobody can stop."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from taskflux import Permanent, Receipt, Task, Transient
from taskflux.store.claims import Claim
from taskflux.telemetry import logs, metrics
from taskflux.telemetry.tracing import TRACE
from taskflux.worker.process import Process
from taskflux.worker.settings import Settings
from taskflux.worker.suspects import Group, Suspects
from tests.integration.store.scene import TYPE, Scene
from tests.unit.worker.test_executor import Boom, Odd, Quiet
from tests.unit.worker.test_suspects import suspects, version
from tests.unit.worker.test_worker import Shift, queued, record
from tests.unit.worker.workplace import Payload, PlainWork, Workplace

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
LATE = "its thread had not returned after 0.05 s"


class Blocking:
    """A function that blocks its thread until `let_go`; then it does what `last` does."""

    def __init__(self, last: PlainWork = lambda task: Receipt({"late": True})) -> None:
        self.tasks: list[Task[Payload]] = []
        self.last = last
        self._loop = asyncio.get_running_loop()
        self._entered = asyncio.Condition()
        self._go = threading.Event()
        self._returned = threading.Semaphore(0)

    def __call__(self, task: Task[Payload]) -> Receipt | None:
        asyncio.run_coroutine_threadsafe(self._enter(task), self._loop)
        assert self._go.wait(60)
        return self.last(task)

    async def _enter(self, task: Task[Payload]) -> None:
        async with self._entered:
            self.tasks.append(task)
            self._entered.notify_all()

    async def entered(self, count: int) -> None:
        """Return once as many calls block."""
        async with asyncio.timeout(20), self._entered:
            await self._entered.wait_for(lambda: len(self.tasks) >= count)

    def let_go(self) -> None:
        self._go.set()


@pytest_asyncio.fixture
async def blocking() -> AsyncIterator[Blocking]:
    blocking = Blocking()
    yield blocking
    blocking.let_go()


def stuck() -> float:
    """Stuck threads as the metric says."""
    return metrics.STUCK_THREADS.labels("email").shown()[0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - of a thread
            await asyncio.sleep(0.005)


def raising(error: BaseException) -> PlainWork:
    def work(task: Task[Payload]) -> Receipt:
        raise error

    return work


# What a plain function is given, and how its attempt ends ------------------------------------------------------------


async def test_a_plain_function_runs_in_a_thread_while_the_loop_goes_on(scene: Scene, blocking: Blocking) -> None:
    blocking.last = lambda task: Receipt({"to": task.payload.to, "in": threading.current_thread().name})
    place = await Workplace.of(scene, plain=blocking)
    (claim,) = await place.claim(payload='{"to": "ada"}')
    place.begin(claim)
    await blocking.entered(1)  # this test runs on the loop that a handler would block
    blocking.let_go()
    await place.settled()
    row = await scene.row(claim.id)
    assert (row["state"], row["attempts"]) == ("succeeded", 1)
    assert json.loads(row["result"]) == {"to": "ada", "in": "blocking-run-plainly-1"}


async def test_the_context_of_an_attempt_reaches_its_thread(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    own = logging.getLogger("own")

    def work(task: Task[Payload]) -> Receipt:
        seen.append((task.id, logs.TASK.get(), TRACE.get()))
        own.warning("from the thread")
        return Receipt()

    place = await Workplace.of(scene, plain=work)
    task = await place.run_one(traceparent=TRACEPARENT)
    assert seen == [(task, task, TRACEPARENT)]


async def test_a_thread_is_used_again_and_there_are_no_more_than_may_run_at_once(scene: Scene) -> None:
    running, most, lock = 0, 0, threading.Lock()
    names = set()

    def work(task: Task[Payload]) -> Receipt:
        nonlocal running, most
        with lock:
            names.add(threading.current_thread().name)
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return Receipt()

    place = await Workplace.of(scene, plain=work, concurrency=3)
    place.begin(*await place.claim(30))
    await place.settled()
    assert most == 3
    assert names == {f"blocking-run-plainly-{number}" for number in (1, 2, 3)}


async def test_progress_is_noted_and_given_to_the_next_attempt(scene: Scene) -> None:
    def work(task: Task[Payload]) -> Receipt:
        if not task.progress:
            raise Transient("busy", progress={"reached": 2})
        return Receipt({"reached before": task.progress["reached"]})

    place = await Workplace.of(scene, plain=work)
    (claim,) = await place.claim()
    place.begin(claim)
    await place.settled()
    assert (await scene.row(claim.id))["result"] == '{"reached": 2}'
    (again,) = await place.claim()
    place.begin(again._replace(progress='{"reached": 2}'))
    await place.settled()
    assert (await scene.row(again.id))["result"] == '{"reached before": 2}'


UNFORESEEN = {
    "RuntimeError": (raising(RuntimeError("a bug")), "RuntimeError: a bug"),
    "BaseException": (raising(Boom("x")), "Boom: x"),
    "GeneratorExit": (raising(GeneratorExit("x")), "GeneratorExit: x"),
    "sys.exit": (lambda task: sys.exit(3), "SystemExit: 3"),
    "KeyboardInterrupt": (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    "StopIteration": (raising(StopIteration()), "RuntimeError: coroutine raised StopIteration"),
    "CancelledError": (raising(asyncio.CancelledError()), "CancelledError"),
    "TimeoutError": (raising(TimeoutError("mine")), "TimeoutError: mine"),
}


@pytest.mark.parametrize("name", UNFORESEEN)
@pytest.mark.parametrize(
    ("policy", "state", "error_class"), [("resend", "scheduled", "Crash"), ("hold", "uncertain", "Ambiguous")]
)
async def test_whatever_leaves_a_plain_function_settles_its_attempt_as_that_of_an_async_one(
    scene: Scene, name: str, policy: Any, state: str, error_class: str
) -> None:
    work, reason = UNFORESEEN[name]
    place = await Workplace.of(scene, plain=work, ambiguous=policy)
    row = await scene.row(await place.run_one())
    assert (row["state"], row["attempts"], row["error_class"]) == (state, 1, error_class)
    assert row["error_reason"] == reason


async def test_an_error_of_a_handler_s_own_kind_counts_as_what_it_derives_from(scene: Scene) -> None:
    for error, state in ((Permanent("no"), "dead"), (Quiet(7), "dead"), (Odd(), "scheduled")):
        place = await Workplace.of(scene, plain=raising(error))
        assert (await scene.row(await place.run_one()))["state"] == state


async def test_a_coroutine_that_a_plain_function_returns_is_no_success(scene: Scene) -> None:
    async def send() -> Receipt:
        return Receipt()

    place = await Workplace.of(scene, plain=lambda task: send())  # type: ignore[arg-type, return-value]
    row = await scene.row(await place.run_one())
    assert (row["state"], row["error_class"]) == ("scheduled", "Crash")
    assert row["error_reason"] == (
        "TypeError: the handler returned a coroutine: declare it with `async def`, and await what it calls"
    )


# Threads that do not return in time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "state"), [("resend", "scheduled"), ("hold", "uncertain")])
async def test_an_attempt_whose_thread_takes_too_long_is_ambiguous_and_what_it_says_later_counts_for_nothing(
    scene: Scene, blocking: Blocking, policy: Any, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = await Workplace.of(scene, plain=blocking, ambiguous=policy, timeout=0.05)
    task = await place.run_one()
    row = await scene.row(task)
    assert (row["state"], row["attempts"], row["error_class"]) == (state, 1, "Ambiguous")
    assert (row["error_reason"], place.executor.in_flight) == (LATE, 0)
    assert "a thread is stuck" in caplog.text
    assert stuck() == 1
    blocking.let_go()
    await until(lambda: stuck() == 0)
    assert await scene.row(task) == row
    assert "a stuck thread has returned" in caplog.text
    assert place.database.ran["settle"] == 1


@pytest.mark.parametrize("last", [raising(SystemExit(3)), raising(Permanent("late")), raising(Boom("late"))])
async def test_whatever_a_stuck_thread_ends_with_counts_for_nothing(
    scene: Scene, blocking: Blocking, last: PlainWork
) -> None:
    blocking.last = last
    place = await Workplace.of(scene, plain=blocking, timeout=0.05)
    task = await place.run_one()
    row = await scene.row(task)
    blocking.let_go()
    await until(lambda: stuck() == 0)
    assert await scene.row(task) == row


async def test_a_stuck_thread_keeps_its_slot_until_it_returns(scene: Scene, blocking: Blocking) -> None:
    at_once: list[int] = []
    quick = threading.Lock()
    running = 0

    def work(task: Task[Payload]) -> Receipt | None:
        nonlocal running
        if task.payload.to == "stuck":
            return blocking(task)
        with quick:
            running += 1
            at_once.append(running)
        time.sleep(0.01)
        with quick:
            running -= 1
        return Receipt()

    place = await Workplace.of(scene, plain=work, concurrency=3, timeout=1.0)
    assert place.executor.room == 6
    place.begin(*await place.claim(payload='{"to": "stuck"}'))
    await place.settled()
    assert (place.executor.room, stuck()) == (4, 1)
    place.begin(*await place.claim(10))
    await place.settled()
    assert max(at_once) == 2
    blocking.let_go()
    await until(lambda: place.executor.room == 6)
    place.begin(*await place.claim(10))
    await place.settled()
    assert max(at_once) == 3


@pytest.mark.parametrize(
    ("last", "state", "error"),
    [(lambda task: Receipt(), "succeeded", None), (raising(RuntimeError("a bug")), "scheduled", "RuntimeError: a bug")],
)
async def test_what_came_back_in_time_counts_though_the_loop_hears_of_it_late(
    scene: Scene, last: PlainWork, state: str, error: str | None
) -> None:
    entered, go = threading.Event(), threading.Event()

    def work(task: Task[Payload]) -> Receipt | None:
        entered.set()
        go.wait()
        return last(task)

    place = await Workplace.of(scene, plain=work, timeout=1.0)
    (claim,) = await place.claim()
    place.begin(claim)
    await until(entered.is_set)
    go.set()
    time.sleep(1.2)  # noqa: ASYNC251 - the loop learns of the return and of the timeout in the same turn
    await place.settled()
    row = await scene.row(claim.id)
    assert (row["state"], row["error_reason"], stuck()) == (state, error, 0)


async def all_stuck(place: Workplace, blocking: Blocking, waiting: int = 0) -> tuple[list[Claim], list[Claim]]:
    """Claims whose threads are stuck, in all of the slots, and those that waited for a slot meanwhile."""
    claims = await place.claim(2)
    place.begin(*claims)
    await blocking.entered(2)
    others = await place.claim(waiting) if waiting else []
    place.begin(*others)
    await place.settled()
    return claims, others


async def test_a_worker_whose_threads_are_all_stuck_takes_nothing_and_releases_what_waits_at_no_cost(
    scene: Scene, blocking: Blocking, caplog: pytest.LogCaptureFixture
) -> None:
    place = await Workplace.of(scene, plain=blocking, concurrency=2, timeout=0.3)
    claims, others = await all_stuck(place, blocking, waiting=2)
    assert {(await scene.row(claim.id))["error_reason"] for claim in claims} == {
        "its thread had not returned after 0.3 s"
    }
    for claim in others:
        row = await scene.row(claim.id)
        assert (row["state"], row["attempts"]) == ("scheduled", 0)
        assert row["error_reason"] == "all threads of its worker were stuck"
    assert len(blocking.tasks) == 2
    assert place.executor.room == 0
    place.clock.now += 7
    assert place.executor.stuck_for == 7
    assert "all threads are stuck: the worker takes no tasks until one returns" in caplog.text
    (late,) = await place.claim()  # it was being claimed as the last thread got stuck
    place.begin(late)
    await place.settled()
    assert ((await scene.row(late.id))["state"], (await scene.row(late.id))["attempts"]) == ("scheduled", 0)


async def test_a_worker_takes_tasks_again_once_a_stuck_thread_returns(
    scene: Scene, blocking: Blocking, caplog: pytest.LogCaptureFixture
) -> None:
    place = await Workplace.of(scene, plain=blocking, concurrency=2, timeout=0.3)
    await all_stuck(place, blocking)
    room = asyncio.create_task(place.executor.wait_for_room())
    await asyncio.sleep(0)
    assert not room.done()
    blocking.let_go()
    await asyncio.wait_for(room, 20)
    assert place.executor.stuck_for == 0
    assert "the worker takes tasks again" in caplog.text
    assert (await scene.row(await place.run_one()))["state"] == "succeeded"


async def test_an_attempt_that_other_code_cancels_leaves_its_thread_stuck(scene: Scene, blocking: Blocking) -> None:
    place = await Workplace.of(scene, plain=blocking)
    before = asyncio.all_tasks()
    (claim,) = await place.claim()
    place.begin(claim)
    await blocking.entered(1)
    for attempt in asyncio.all_tasks() - before:
        attempt.cancel()
    await place.settled()
    row = await scene.row(claim.id)
    assert (row["state"], row["error_class"], row["error_reason"], stuck()) == (
        *("scheduled", "Crash", "CancelledError"),
        1,
    )


async def test_a_thread_that_cannot_be_started_is_an_attempt_that_was_not_called(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    place = await Workplace.of(scene, plain=lambda task: Receipt(), ambiguous="hold")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        row = await scene.row(await place.run_one())
    assert (row["state"], row["error_class"]) == ("scheduled", "Crash")
    assert (await scene.row(await place.run_one()))["state"] == "succeeded"  # and its slot is free


async def test_a_stuck_thread_keeps_the_room_that_its_payload_takes(scene: Scene, blocking: Blocking) -> None:
    place = await Workplace.of(scene, plain=blocking, timeout=0.3, payload_bytes=1_500_000)
    large = json.dumps({"to": "x" * 400_000})
    first, second = await place.claim(2, payload=large)
    place.begin(first, second)
    await until(lambda: stuck() == 1)
    assert len(blocking.tasks) == 1
    blocking.let_go()
    await place.settled()
    assert (await scene.row(second.id))["state"] == (await scene.row(first.id))["state"].replace(
        "scheduled", "succeeded"
    )


async def test_a_worker_whose_threads_are_all_stuck_asks_for_no_records_until_one_returns(
    scene: Scene, blocking: Blocking
) -> None:
    place = await Workplace.of(scene, plain=blocking, concurrency=1, timeout=0.3)
    stuck_one, released, next_one = await queued(scene, 3)
    shift = Shift(place, [record(stuck_one)], [record(released)], [record(next_one)])
    working = asyncio.create_task(shift.worker.run())
    await until(lambda: place.executor.in_flight == 0 and stuck() == 1)
    await asyncio.sleep(0.05)
    assert shift.topic.batches == [[record(next_one)]]
    assert [(await scene.state(task))[0] for task in (stuck_one, released)] == ["scheduled", "scheduled"]
    assert (await scene.state(next_one))[0] == "queued"
    blocking.let_go()
    await asyncio.wait_for(shift.topic.idle.wait(), 20)
    await place.settled()
    assert (await scene.state(next_one))[0] == "succeeded"
    shift.process.drain()
    await working


async def test_suspects_that_were_released_as_the_last_thread_got_stuck_are_not_said_to_have_begun(
    scene: Scene, blocking: Blocking
) -> None:
    place = await Workplace.of(scene, plain=blocking, concurrency=1, timeout=2.0)
    place.begin(*await place.claim())
    await blocking.entered(1)
    group = await suspects(scene, 1)
    (member,) = await place.claims.claim(TYPE, {group[0]: await version(scene, group[0])}, suspects=True)
    waiting = Group([member])
    place.begin(member, turn=waiting.turn)
    alone = Suspects(Process("process-email", Settings()), place.executor, patience=20)
    alone.add(waiting)
    running = asyncio.create_task(alone.run_next())
    await place.settled()
    assert (await scene.row(group[0]))["error_reason"] == "all threads of its worker were stuck"
    blocking.let_go()
    await running
    assert place.database.ran["begin_alone"] == 0
    assert await scene.groups() == [set(group)]


# The end of the worker -----------------------------------------------------------------------------------------------


async def test_a_drain_settles_what_runs_in_threads_and_waits_for_none_of_them(
    scene: Scene, blocking: Blocking
) -> None:
    place = await Workplace.of(scene, plain=blocking, concurrency=2, timeout=0.3)
    (late,) = await place.claim()
    place.begin(late)
    await place.settled()
    running, waiting = await place.claim(2)
    place.begin(running, waiting)
    await blocking.entered(2)
    began = time.monotonic()
    await place.executor.drain(0.0, asyncio.Event())
    assert time.monotonic() - began < 2
    rows = [await scene.row(claim.id) for claim in (running, waiting)]
    assert [(row["state"], row["attempts"]) for row in rows] == [("scheduled", 1), ("scheduled", 0)]
    assert [row["error_reason"] for row in rows] == [
        "it was cut off when its worker ended",
        "the worker ended before it began",
    ]
    assert place.executor.in_flight == 0


async def test_threads_end_with_the_drain_and_stuck_ones_once_they_return(scene: Scene, blocking: Blocking) -> None:
    def ours() -> int:
        return sum(thread.name.startswith("blocking-run-plainly") for thread in threading.enumerate())

    before = ours()
    place = await Workplace.of(scene, plain=blocking, timeout=0.3)
    place.begin(*await place.claim(2))
    await place.settled()
    blocking.let_go()
    await until(lambda: stuck() == 0)
    assert ours() == before + 2
    await place.executor.drain(0.0, asyncio.Event())
    await until(lambda: ours() == before)


async def test_the_tasks_of_a_lost_worker_do_not_run_beside_a_stuck_thread(scene: Scene, blocking: Blocking) -> None:
    place = await Workplace.of(scene, plain=blocking, timeout=0.05)
    await place.run_one()
    idle = asyncio.create_task(place.executor.wait_until_idle())
    await asyncio.sleep(0.01)
    assert not idle.done()
    blocking.let_go()
    await asyncio.wait_for(idle, 20)
