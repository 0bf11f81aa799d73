"""Attempts that do not wait share an asyncio task, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar, copy_context
from itertools import pairwise
from typing import Any, cast

import pytest

from taskflux.worker.attempt import TURN, Running, Slots, Stage
from tests.unit.world import Clock

Attempt = Callable[[], Awaitable[Any]]
WHOSE: ContextVar[str] = ContextVar("whose", default="nobody's")


def running() -> Running:
    return Running(cast("Any", None), 1, False, 0.0, copy_context())


class Line:
    """Attempts that are given their slots in turn; `ended` are those that did, with what they raised."""

    def __init__(self, slots: int = 10) -> None:
        self.clock = Clock()
        self.slots = Slots(slots, self._run, self.clock)
        self.tasks: list[str] = []  # by name: a reference would say that the task is still used
        self.ended: list[tuple[Attempt, BaseException | None]] = []
        self._attempts: dict[Running, Attempt] = {}
        self.one_ended = asyncio.Event()

    def enter(self, *attempts: Attempt) -> list[Running]:
        """Let these begin."""
        entered = [running() for _ in attempts]
        self._attempts |= dict(zip(entered, attempts, strict=True))
        for each in entered:
            self.slots.enter(each)
        return entered

    async def done(self) -> list[BaseException | None]:
        """Return once all have ended; what each of them raised, in the order of their ends."""
        async with asyncio.timeout(20):
            while self._attempts:
                self.one_ended.clear()
                await self.one_ended.wait()
        return [error for _, error in self.ended]

    async def _run(self, running: Running) -> None:
        self.tasks.append(cast("asyncio.Task[Any]", asyncio.current_task()).get_name())
        attempt, error = self._attempts[running], None
        try:
            await attempt()
        except BaseException as raised:  # noqa: BLE001 - as an attempt does
            error = raised
        self.slots.give(running)
        self.ended.append((attempt, error))
        del self._attempts[running]
        self.one_ended.set()


async def nothing() -> None:
    """A handler that does not wait."""


async def nap() -> None:
    await asyncio.sleep(0.001)


async def test_attempts_that_do_not_wait_share_a_task() -> None:
    line, before = Line(), asyncio.all_tasks()
    line.enter(*[nothing] * 100)
    assert len(asyncio.all_tasks() - before) == 1
    assert await line.done() == [None] * 100
    assert len(set(line.tasks)) == 1


async def test_an_attempt_that_waits_has_its_task_to_itself() -> None:
    line = Line(100)
    line.enter(*[nap] * 50)
    await line.done()
    assert len(set(line.tasks)) == 50


async def test_those_behind_one_that_waits_begin_before_it_ends() -> None:
    go = asyncio.Event()

    async def lets_go() -> None:
        go.set()

    line = Line(2)
    line.enter(go.wait, nothing, lets_go)
    assert await line.done() == [None] * 3


async def test_attempts_begin_in_the_order_in_which_they_came_whether_they_wait_or_not() -> None:
    began: list[int] = []

    def noting(number: int, attempt: Attempt) -> Attempt:
        async def noted() -> None:
            began.append(number)
            await attempt()

        return noted

    line = Line(3)
    line.enter(*[noting(number, nap if number % 3 else nothing) for number in range(60)])
    await line.done()
    assert began == list(range(60))


async def test_no_more_go_on_at_once_than_there_are_slots() -> None:
    now = most = 0

    async def counted() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await nap()
        now -= 1

    line = Line(4)
    line.enter(*[counted, nothing, nothing] * 20)
    await line.done()
    assert most == 4


async def test_what_an_attempt_sets_in_its_context_is_its_own_before_and_after_it_waits() -> None:
    seen: list[str] = []

    def owned(name: str, attempt: Attempt) -> Attempt:
        async def owning() -> None:
            seen.append(WHOSE.get())
            WHOSE.set(name)
            await attempt()
            assert WHOSE.get() == name
            child = asyncio.create_task(whose())
            assert await child == name

        async def whose() -> str:
            return WHOSE.get()

        return owning

    line = Line()
    line.enter(owned("a", nothing), owned("b", nap), owned("c", nothing), owned("d", nap))
    assert await line.done() == [None] * 4
    assert seen == ["nobody's"] * 4
    assert WHOSE.get() == "nobody's"


async def test_the_current_task_is_the_same_from_the_first_step_of_an_attempt_to_its_last() -> None:
    async def looks() -> None:
        before = asyncio.current_task()
        await nap()
        assert asyncio.current_task() is before

    line = Line()
    line.enter(nothing, looks, nothing, looks)
    assert await line.done() == [None] * 4


async def test_a_timeout_that_begins_before_the_first_wait_ends_that_wait_and_no_other() -> None:
    async def times_out() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(30)

    async def in_time() -> None:
        async with asyncio.timeout(0.001):
            await nothing()
        await asyncio.sleep(0.01)

    line = Line()
    line.enter(in_time, times_out, nothing, in_time, nap)
    errors = await line.done()
    assert sorted(type(error).__name__ for error in errors) == ["NoneType"] * 4 + ["TimeoutError"]


async def test_a_group_of_tasks_that_begins_before_the_first_wait_cancels_its_own_attempt_alone() -> None:
    async def fails() -> None:
        raise ValueError("a part of it")

    async def grouped() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await asyncio.sleep(30)

    line = Line()
    line.enter(nothing, grouped, nap, grouped)
    errors = [type(error).__name__ for error in await line.done()]
    assert sorted(errors) == ["ExceptionGroup", "ExceptionGroup", "NoneType", "NoneType"]


async def test_an_attempt_that_cancels_its_task_as_it_ends_reaches_no_other() -> None:
    async def cancels() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    line = Line()
    line.enter(cancels, nap, cancels, nothing, nap)
    assert await line.done() == [None] * 5


async def test_what_an_attempt_has_left_behind_cancels_no_other() -> None:
    """It keeps hold of the task in which it ran, and cancels that once another attempt waits."""
    left: list[asyncio.Task[Any]] = []

    async def leaves() -> None:
        task = asyncio.current_task()
        assert task is not None
        left.append(task)

    async def waits() -> None:
        for task in left:
            asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.sleep(0.01)

    line = Line()
    line.enter(leaves, waits, nothing, waits)
    assert await line.done() == [None] * 4


async def test_a_cancelled_attempt_is_cancelled_where_it_waits_and_may_go_on() -> None:
    async def goes_on() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(30)
        await nap()

    line = Line()
    first, *_ = line.enter(goes_on, nap)
    await asyncio.sleep(0)
    assert first.task is not None
    first.task.cancel()
    assert await line.done() == [None] * 2


async def test_one_whose_task_was_cancelled_before_it_began_begins_in_another() -> None:
    line, before = Line(), asyncio.all_tasks()
    line.enter(nothing, nap)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    assert await line.done() == [None] * 2


async def test_the_loop_has_its_turn_while_attempts_end_without_waiting() -> None:
    turns: list[int] = []

    async def busy() -> None:
        time.sleep(TURN / 2)  # noqa: ASYNC251 - it computes something

    async def look() -> None:
        while True:
            turns.append(len(line.ended))
            await asyncio.sleep(0)

    line = Line()
    looking = asyncio.create_task(look())
    line.enter(*[busy] * 20)
    await line.done()
    looking.cancel()
    assert max(after - before for before, after in pairwise(turns)) <= 3


async def test_one_that_leaves_the_line_does_not_begin() -> None:
    line = Line(1)
    _, waiting = line.enter(nap, nothing)
    await asyncio.sleep(0)
    assert waiting.stage is Stage.WAITING
    line.slots.leave(waiting)
    async with asyncio.timeout(20):
        await line.one_ended.wait()
    for _ in range(10):  # its slot is free
        await asyncio.sleep(0)
    assert len(line.ended) == 1


async def test_an_attempt_in_a_task_of_its_own_is_in_the_same_line() -> None:
    line = Line(1)
    order: list[str] = []
    go = asyncio.Event()

    async def own(each: Running) -> None:
        await line.slots.take(each)
        order.append("own")
        line.slots.give(each)

    async def noted() -> None:
        order.append("line")
        await go.wait()

    line.enter(noted)
    await asyncio.sleep(0)
    mine, cancelled = running(), running()
    tasks = [asyncio.create_task(own(each), context=Context()) for each in (cancelled, mine)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    line.enter(noted)
    go.set()
    await line.done()
    await asyncio.wait(tasks)
    assert (order, cancelled.slot, mine.slot) == (["line", "own", "line"], False, False)
    line.enter(nothing)
    await line.done()


async def test_an_attempt_in_a_task_of_its_own_takes_a_slot_and_gives_it_on() -> None:
    line, go, taken = Line(2), asyncio.Event(), asyncio.Semaphore(0)

    async def own(each: Running) -> None:
        await line.slots.take(each)
        taken.release()
        await go.wait()
        line.slots.give(each)

    mine = [asyncio.create_task(own(running()), context=Context()) for _ in range(2)]
    await taken.acquire()
    await taken.acquire()
    line.enter(nothing)
    for _ in range(10):
        await asyncio.sleep(0)
    assert line.ended == []
    go.set()
    await line.done()
    await asyncio.wait(mine)


async def test_one_that_was_cancelled_as_a_slot_became_free_leaves_it_to_the_next() -> None:
    line, held = Line(1), running()
    await line.slots.take(held)
    cancelled, mine = (asyncio.create_task(line.slots.take(running()), context=Context()) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    line.slots.give(held)  # before the cancelled one has noticed
    async with asyncio.timeout(20):
        await mine
    with pytest.raises(asyncio.CancelledError):
        await cancelled


@pytest.mark.parametrize(("in_time", "wanted"), [(5, 10), (50, 20), (1000, 80)])
async def test_as_many_may_be_in_line_as_end_soon_but_no_more_than_a_few_times_what_may_run(
    in_time: int, wanted: int
) -> None:
    line = Line(10)
    assert line.slots.in_line(10) == 10
    line.enter(*[nothing] * in_time)
    await line.done()
    assert line.slots.in_line(10) == 10  # nothing is known of so short a time
    line.clock.now += 0.125
    assert line.slots.in_line(10) == wanted
    line.clock.now += 0.125
    assert line.slots.in_line(10) == 10
    assert line.slots.in_line(0) == 0
