"""How a handler becomes a process: settings, logs, signals, probes, and a way to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from taskflux.store.errors import StoreError
from taskflux.tasks.errors import Misconfigured
from taskflux.telemetry import connection_metrics, instruments, logs, metrics, provider_metrics, tracing
from taskflux.version import VERSION
from taskflux.worker.probes import Health, ProbeServer
from taskflux.worker.settings import Settings, WrongSettings, load

log = logging.getLogger(__name__)

EVERYTHING = ("postgres", "kafka")
"""The servers that a deployment cannot do without, unless it says otherwise."""


BEAT: Final = 0.5
"""Seconds between two looks at how late the loop is."""


class Serves(Protocol):
    """What `taskflux run` runs: a `Handler`, or a `Service`."""

    @property
    def name(self) -> str: ...

    async def serve(self, process: Process) -> None:
        """Work until `process.draining` is set, then end what is under way and return."""


@dataclass(frozen=True, slots=True)
class Service:
    """A deployment that is no task handler. Made by `@service`."""

    name: str
    own_http: bool
    function: Callable[[Process], Awaitable[None]]
    needs: tuple[str, ...] = EVERYTHING

    async def serve(self, process: Process) -> None:
        await self.function(process)


def service(
    name: str, *, own_http: bool = False, needs: tuple[str, ...] = EVERYTHING
) -> Callable[[Callable[[Process], Awaitable[None]]], Service]:
    """Declare an async function as a deployment.

    Args:
        own_http: it answers the probes itself.
        needs: the servers that must be set for it.
    """

    def declare(function: Callable[[Process], Awaitable[None]]) -> Service:
        return Service(name, own_http, function, needs)

    return declare


class Process:
    """What a service finds around it. `on_started` is called once, as soon as it does its work."""

    def __init__(self, name: str, settings: Settings, on_started: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.settings = settings
        self._on_started = on_started
        self.health = Health()
        self.draining = asyncio.Event()
        self.hurry = asyncio.Event()
        self.label = f"{name}@{socket.gethostname()}:{os.getpid()}"

    def started(self) -> None:
        """The process has begun to do its work: readyz is true from here on."""
        if not self.health.started:
            self._on_started()
        self.health.started = True
        metrics.DRAINING.labels().set(0)
        log.info("started", extra={"pid": os.getpid()})

    def drain(self) -> None:
        """End what is under way; asked twice, do not wait for it."""
        if self.draining.is_set():
            self.hurry.set()
        self.draining.set()
        metrics.DRAINING.labels().set(1)

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the order to drain."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.draining.wait(), seconds)

    @asynccontextmanager
    async def background(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Let `work` go on while the block runs. If it fails, the process drains and the block ends with its error."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._background_ended)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            raise error

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.critical("a background task failed: the process ends", exc_info=error)
            self.drain()


def run(target: Serves) -> int:
    """Run `target` until SIGTERM or Ctrl-C; the exit status."""
    try:
        settings = load(*(target.needs if isinstance(target, Service) else EVERYTHING))
        logs.configure(settings.log, target.name)
        if settings.otel.endpoint is not None:
            from taskflux.telemetry import trace_export  # lazily: untraced, OpenTelemetry is not even loaded

            trace_export.configure(settings.otel, target.name)
        if not settings.metrics.enabled:
            instruments.switch_off()
        metrics.BUILD.labels(VERSION).set(1)
        provider_metrics.install()
        connection_metrics.install()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(target, settings))
    except WrongSettings as error:
        print(f"taskflux run {target.name}: the settings are wrong.\n{error}", file=sys.stderr)
        return 2
    except Misconfigured as error:  # what a provider's client says of its settings
        print(f"taskflux run {target.name}: {error.reason}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"taskflux run {target.name}: {error}", file=sys.stderr)
        return 1
    finally:
        tracing.close()
    return 0


async def _serve(target: Serves, settings: Settings) -> None:
    # What is there by then stays: a full collection that looked at it would stop the loop for 30 ms, time and again.
    process = Process(target.name, settings, on_started=gc.freeze)
    loop = asyncio.get_running_loop()
    logs.watch(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.drain)
    async with _heartbeat(process), _probes(target, process):
        await target.serve(process)
    log.info("stopped")


@asynccontextmanager
async def _heartbeat(process: Process) -> AsyncIterator[None]:
    async def beat() -> None:
        loop, lag = asyncio.get_running_loop(), metrics.LOOP_LAG.labels()
        while True:
            process.health.beat()
            due = loop.time() + BEAT
            await asyncio.sleep(BEAT)
            lag.observe(max(0.0, loop.time() - due))

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


@asynccontextmanager
async def _probes(target: Serves, process: Process) -> AsyncIterator[None]:
    if isinstance(target, Service) and target.own_http:
        yield
        return
    server = ProbeServer(process.settings.http, process.health)
    server.start()
    try:
        yield
    finally:
        await asyncio.to_thread(server.stop)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return None
    return uvloop.new_event_loop
