from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from taskflux import Receipt, Task, handler
from taskflux.telemetry import metrics
from taskflux.worker.handler import Handler
from taskflux.worker.loop_watch import BLOCKED, LOOK, LoopWatch, watched
from taskflux.worker.process import BEAT, HANGS_AFTER, Health, until_done
from tests.unit.worker.workplace import Payload
from tests.unit.world import Clock

Work = Callable[[], None]


class Watched:
    """A handler that does what a test gives it, and a watch that looks when a test says so."""

    def __init__(self, thread: int | None = None) -> None:
        self.clock = Clock()
        self.health = Health(self.clock)
        self.work: Work = lambda: None

        @handler("resize-image", payload=Payload)
        async def resize(task: Task[Payload]) -> Receipt:
            self.work()
            return Receipt()

        self.handler: Handler[Any] = resize
        self.line = inspect.getsourcelines(resize.function)[1] + 2
        self.watch = LoopWatch(resize, self.health, thread or threading.get_ident(), self.clock)
        self.clock.now += BEAT
        self.beat()
        self.before = self.counted

    @property
    def counted(self) -> float:
        return metrics.LOOP_BLOCKED.labels("resize-image").value

    @property
    def blocks(self) -> float:
        """How often the loop was blocked."""
        return self.counted - self.before

    def later(self, seconds: float) -> None:
        """The loop does not turn for so many seconds after its beat was due, and is looked at."""
        self.clock.now = self.health.beaten + BEAT + seconds
        self.watch.look()

    def beat(self) -> None:
        """It turns again, and is looked at."""
        self.health.beat()
        self.watch.look()

    async def call(self) -> None:
        await self.handler.function(None)


async def test_a_handler_that_blocks_the_loop_is_counted_and_named_with_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Watched()
    scene.work = lambda: scene.later(8)
    await scene.call()
    scene.clock.now += 4
    scene.beat()
    said = f"the event loop of resize was blocked for 12 s in resize at line {scene.line}"
    assert [each.getMessage() for each in caplog.records] == [said]
    assert "test_loop_watch.py" in vars(caplog.records[0])["stack"]
    assert scene.blocks == 1


async def test_the_handler_is_named_however_deep_it_is_in_a_library(caplog: pytest.LogCaptureFixture) -> None:
    scene = Watched()

    def through_a_library() -> None:
        threading.Timer(0, lambda: scene.later(5)).run()  # its own code, in this thread

    scene.work = through_a_library
    await scene.call()
    scene.beat()
    assert f"blocked for 5.0 s in resize at line {scene.line}" in caplog.text
    assert "threading.py" in vars(caplog.records[0])["stack"]


async def test_what_a_handler_has_started_is_named_by_its_own_name(caplog: pytest.LogCaptureFixture) -> None:
    scene = Watched()

    async def left_behind() -> None:
        scene.later(2)

    await asyncio.create_task(left_behind())
    scene.beat()
    assert "in left_behind at line" in caplog.text


async def test_a_loop_that_is_late_for_less_than_a_second_is_not_blocked(caplog: pytest.LogCaptureFixture) -> None:
    scene = Watched()
    scene.work = lambda: scene.later(BLOCKED - 0.01)
    await scene.call()
    scene.beat()
    assert (scene.blocks, caplog.text) == (0, "")


async def test_a_block_is_counted_once_while_it_lasts_and_logged_before_livez_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever restarts the process because of it leaves no later moment to tell it."""
    scene = Watched()

    def blocks() -> None:
        for seconds in (BLOCKED, 5, HANGS_AFTER, 20, 30):
            scene.later(seconds)

    scene.work = blocks
    await scene.call()
    where = f"in resize at line {scene.line}"
    assert [each.getMessage() for each in caplog.records] == [
        f"the event loop of resize has been blocked for 10 s {where}"
    ]
    scene.beat()
    assert caplog.records[-1].getMessage() == f"the event loop of resize was blocked for 30 s {where}"
    assert (scene.blocks, len(caplog.records)) == (1, 2)


async def test_the_next_block_is_another(caplog: pytest.LogCaptureFixture) -> None:
    scene = Watched()
    scene.work = lambda: scene.later(2)
    for _ in range(2):
        await scene.call()
        scene.beat()
    assert (scene.blocks, len(caplog.records)) == (2, 2)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_machine_that_was_suspended_while_the_loop_was_idle_is_not_a_block(
    new_loop: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    loop, idle, end = new_loop(), threading.Event(), asyncio.Event()

    async def wait() -> None:
        loop.call_soon(idle.set)
        await end.wait()

    work: Coroutine[Any, Any, None] = wait()
    thread = threading.Thread(target=until_done, args=(loop, work))
    thread.start()
    idle.wait()
    scene = Watched(thread.ident)
    # The callback has run, and the loop may still be about to wait.
    patience = time.monotonic() + 20
    while (seen := _looked_at(scene)) and time.monotonic() < patience:
        caplog.clear()
    assert (seen, caplog.text) == (0, "")
    loop.call_soon_threadsafe(end.set)
    thread.join()
    loop.close()


def _looked_at(scene: Watched) -> float:
    """How often it was found blocked by one look."""
    before = scene.counted
    scene.later(5)
    scene.beat()
    return scene.counted - before


async def test_the_watching_thread_ends_with_its_worker() -> None:
    with watched(Watched().handler, Health()):
        (thread,) = [each for each in threading.enumerate() if each.name == "loop-watch"]
    await asyncio.to_thread(thread.join, 10 * LOOK)
    assert not thread.is_alive()


async def test_a_loop_that_has_not_begun_to_beat_is_not_blocked(caplog: pytest.LogCaptureFixture) -> None:
    scene = Watched()
    scene.watch = LoopWatch(scene.handler, scene.health, threading.get_ident(), scene.clock)
    scene.work = lambda: scene.later(HANGS_AFTER)
    await scene.call()
    assert (scene.blocks, caplog.text) == (0, "")
