"""`/livez`, `/readyz` and `/metrics` of a process that serves nothing else, or serves them on a port of their own.

They are answered by a thread of their own, so that livez reports when the loop hangs instead of hanging with it.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from taskflux.secrets import DIRECTORY, Unreadable
from taskflux.store.errors import StoreError
from taskflux.tasks.errors import Misconfigured
from taskflux.telemetry import instruments, logs, metrics, outages
from taskflux.telemetry.instruments import SWITCHED_OFF, packed, shown, switched_off
from taskflux.version import VERSION
from taskflux.worker.hosts import names, refusal
from taskflux.worker.settings import HttpSettings, Settings, WrongSettings, load, renew

PLAIN_TEXT: Final = MappingProxyType({"Content-Type": "text/plain; charset=utf-8"})
PROBLEM: Final = MappingProxyType({"Content-Type": "application/problem+json"})
MOST_CONNECTIONS: Final = 64
"""Threads that answer probes; each has one connection."""
ANSWER_SECONDS: Final = 10.0
"""Seconds that a client may take to read an answer."""
LINGER: Final = 1.0
"""Seconds for which input of a refused client is dropped."""
STUCK: Final = "all threads of the handler are stuck: it takes no tasks"
RENEW: Final = 2.0
"""Seconds between two looks for renewed secrets."""
HANGS_AFTER: Final = 10.0
"""Seconds without a heartbeat of the loop after which livez fails."""


class Health:
    """The state behind the probes. An unreachable store is a metric, not a reason for a restart."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.started = False
        self._clock = clock
        self.beaten = clock()
        """When the loop last ran."""
        self.stuck_for: Callable[[], float] = lambda: 0.0
        """Seconds for which all threads of the handler have been stuck, so that nothing can run; 0: they are not."""
        self.patience = math.inf
        """Seconds of that after which only a restart helps."""

    def beat(self) -> None:
        """The loop runs."""
        self.beaten = self._clock()

    @property
    def failure(self) -> str | None:
        """Why the process should be restarted; None while it need not be."""
        if self._clock() - self.beaten >= HANGS_AFTER:
            return "the event loop hangs"
        return STUCK if self.stuck_for() >= self.patience else None


class ProbeServer:
    """Serves the probes of `health` from a thread."""

    def __init__(self, settings: HttpSettings, health: Health) -> None:
        apart = settings.management_port is not None
        port = settings.management_port if settings.management_port is not None else settings.port
        try:
            self._server = _Server(settings, port, health)
        except OSError as error:
            raise WrongSettings(
                f"TASKFLUX_HTTP__HOST and TASKFLUX_HTTP__{'MANAGEMENT_PORT' if apart else 'PORT'}: cannot listen on"
                f" {settings.host}:{port} ({error.strerror or error}): choose another, or 0 for any free port"
            ) from error

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._server.serve_forever, name="probes", daemon=True).start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, settings: HttpSettings, port: int, health: Health) -> None:
        self.address_family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        super().__init__((settings.host, port), _Handler)
        self.settings = settings
        self.health = health
        self.allowed = names(settings.allowed_hosts)
        self._lock = threading.Lock()
        self._open: dict[Any, None] = {}  # in the order in which they came

    def server_bind(self) -> None:
        """Every address, if the host is `::`."""
        if self.server_address[0] == "::" and socket.has_dualstack_ipv6():
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own. When there are too many, the oldest makes room: no flood locks a probe out."""
        with self._lock:
            self._open[request] = None
            if len(self._open) > MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread wakes up and ends
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a fault of ours. A client that disconnects is not one."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            log.error("%s while answering a probe\n%s", type(error).__name__, logs.frames(error))


class _Refused(Exception):
    """A head that is too large or too slow; the argument is the status of the answer."""


class _Head(io.RawIOBase):
    """What a client sends, up to a number of bytes and until a deadline, however slowly it comes."""

    def __init__(self, connection: socket.socket, settings: HttpSettings) -> None:
        self._connection = connection
        self._ends = time.monotonic() + settings.head_seconds
        self._left = settings.max_head_bytes
        self._begun = False
        self._beyond_target = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            raise _Refused(431 if self._beyond_target else 414)
        self._connection.settimeout(max(0.001, self._ends - time.monotonic()))
        try:
            count = self._connection.recv_into(buffer, min(len(buffer), self._left))
        except TimeoutError:
            if self._begun:
                raise _Refused(408) from None
            return 0
        self._begun = True
        self._left -= count
        self._beyond_target |= b"\n" in bytes(buffer[:count])
        return count


class _Handler(BaseHTTPRequestHandler):
    """Answers one request a connection, as HTTP/1.0 does."""

    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Head(self.connection, self.server.settings))
        self.requestline = self.request_version = self.command = ""

    def handle(self) -> None:
        try:
            super().handle()
        except _Refused as refused:
            self.send_error(refused.args[0])
            self._linger()

    def _linger(self) -> None:
        """Drop what the client still sends, for a while: closed at once, it might never read the answer."""
        ends = time.monotonic() + LINGER
        self.connection.shutdown(socket.SHUT_WR)
        while (left := ends - time.monotonic()) > 0:
            self.connection.settimeout(left)
            if not self.connection.recv(65536):
                return

    def do_GET(self) -> None:
        if said := refusal(self.server.allowed, self.headers.get_all("Host", [])):
            self._answer(400, said.encode())
            return
        health = self.server.health
        match self.path.split("?")[0]:
            case "/livez":
                failure = health.failure
                self._answer(503 if failure else 200, (failure or "ok").encode())
            case "/readyz":
                ready = health.started and not health.stuck_for()
                state = "ok" if ready else STUCK if health.started else "starting"
                self._answer(200 if ready else 503, "\n".join([state, *outages.waiting()]).encode())
            case "/metrics":
                self._show_metrics()
            case _:
                self._answer(404, b"only /livez, /readyz and /metrics are served here")

    def _show_metrics(self) -> None:
        if switched_off():
            self._answer(404, SWITCHED_OFF)
            return
        self._answer(200, *packed(*shown(self.headers.get("Accept", "")), self.headers.get("Accept-Encoding", "")))

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] = PLAIN_TEXT) -> None:
        self.connection.settimeout(ANSWER_SECONDS)  # for all of it
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A problem (RFC 9457) instead of a page; it never quotes the request."""
        self.request_version = self.protocol_version  # for HTTP/0.9 it would leave out the status
        status = HTTPStatus(code)
        document = {"type": "about:blank", "title": status.phrase, "status": code, "detail": status.description}
        self._answer(code, json.dumps(document).encode(), PROBLEM)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds, and are not logged."""


log = logging.getLogger(__name__)

EVERYTHING = ("postgres", "kafka")
"""The servers that a deployment needs by default."""


LAST_WAIT: Final = 2.0
"""Seconds for tasks and threads that a handler has left to end, after the process has done its work."""
BLOCKING: Final = "blocking"
"""The prefix of the names of threads in which `asyncio.to_thread` runs functions."""
BEAT: Final = 0.5
"""Seconds between two measurements of how late the loop is."""


class Service(NamedTuple):
    """What `taskflux run` runs. Made by `@service`, or from a handler by `worker.service_of`.

    `serve` works until `process.draining` is set, then finishes what is in progress and returns. A service with
    `own_http` answers the probes itself, also where they have a port of their own; `needs` are the servers that must be
    configured for it.
    """

    name: str
    serve: Callable[[Process], Coroutine[Any, Any, None]]
    own_http: bool = False
    needs: tuple[str, ...] = EVERYTHING


def service(
    name: str, *, own_http: bool = False, needs: tuple[str, ...] = EVERYTHING
) -> Callable[[Callable[[Process], Coroutine[Any, Any, None]]], Service]:
    """Declare an async function as a deployment that is not a task handler."""

    def declare(serve: Callable[[Process], Coroutine[Any, Any, None]]) -> Service:
        return Service(name, serve, own_http, needs)

    return declare


class Process:
    """The environment of a service. `on_started` is called once, when it has started its work."""

    def __init__(self, name: str, settings: Settings, on_started: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.settings = settings
        self._on_started = on_started
        self.health = Health()
        self.draining = asyncio.Event()
        self.hurry = asyncio.Event()
        self.label = f"{name}@{socket.gethostname()}:{os.getpid()}"

    def started(self) -> None:
        """The process has started its work: readyz is true from here on."""
        if not self.health.started:
            self._on_started()
        self.health.started = True
        metrics.DRAINING.labels().set(0)
        log.info("started", extra={"pid": os.getpid()})

    def drain(self) -> None:
        """Finish what is in progress; called twice, do not wait for it."""
        if self.draining.is_set():
            self.hurry.set()
        self.draining.set()
        metrics.DRAINING.labels().set(1)

    async def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the process drains."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.draining.wait(), seconds)

    async def wait(self, work: Coroutine[Any, Any, object], seconds: float | None = None) -> bool:
        """Wait for `work` for at most so many seconds, or until the drain begins; whether it finished first.

        If it failed, its error is raised.
        """
        waiting, stop = asyncio.ensure_future(work), asyncio.ensure_future(self.draining.wait())
        try:
            await asyncio.wait([waiting, stop], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
                return True
            return False
        finally:
            waiting.cancel()
            stop.cancel()

    @asynccontextmanager
    async def background(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run `work` while the block runs. If it fails, the process drains and the block ends with its error."""
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


def run(target: Service) -> int:
    """Run `target` until SIGTERM or Ctrl-C; the exit status."""
    close_traces: Callable[[], None] | None = None
    try:
        settings = load(*target.needs)
        logs.configure(settings.log, target.name)
        if settings.otel.wanted:
            from taskflux.telemetry import trace_export  # lazily: untraced, OpenTelemetry is not even loaded

            trace_export.configure(settings.otel, target.name)
            close_traces = trace_export.close
        if not settings.metrics.enabled:
            instruments.switch_off()
        metrics.BUILD.labels(VERSION).set(1)
        metrics.OPENED.zeros("kafka")
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            loop, threads = runner.get_loop(), ThreadPoolExecutor(thread_name_prefix=BLOCKING)
            loop.set_default_executor(threads)
            # Objects that exist once it has started stay: full garbage collections that scan them would stop the
            # loop for 30 ms each.
            process = Process(target.name, settings, on_started=gc.freeze)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, process.drain)
            try:
                until_done(loop, _serve(target, process))
            finally:
                if not _cleared(loop, threads):  # Python would wait for it
                    error = sys.exc_info()[1]
                    log.error(
                        "a handler left tasks or threads that do not end: the process exits", exc_info=logs.about(error)
                    )
                    if close_traces is not None:
                        close_traces()
                    logging.shutdown()
                    os._exit(0 if error is None else 1)
    except WrongSettings as error:
        print(f"taskflux run {target.name}: the settings are wrong.\n{error}", file=sys.stderr)
        return 2
    except Misconfigured as error:  # what a provider's client says of its settings
        print(f"taskflux run {target.name}: {error.reason}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"taskflux run {target.name}: {error}", file=sys.stderr)
        return 1
    except SystemExit as error:  # of the code that it loads, a provider's `connect`: Python would end without a message
        log.critical("the process fails: its own code raised SystemExit", exc_info=logs.about(error))
        return 1
    finally:
        if close_traces is not None:
            close_traces()
    return 0


def until_done(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> None:
    """Run `work` to its end.

    asyncio lets a SystemExit or a KeyboardInterrupt leave the loop, whichever task or callback raises it, and any code
    may stop the loop. What a handler has started must not end the work of others, so the loop continues. An order to
    end comes as a signal, which drains, and never as an exception.
    """
    main = loop.create_task(work)
    while True:
        try:
            loop.run_until_complete(main)
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
            if main.done():  # it was its own
                raise
            log.error("a task or a callback tried to end the process: it continues", exc_info=logs.about(error))
        else:
            return


def _cleared(loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor) -> bool:
    """End the tasks and the loop's threads that handlers have left behind; whether all of them have ended in time."""
    left = asyncio.all_tasks(loop)
    for each in left:
        each.cancel()
    if left:
        until_done(loop, asyncio.wait(left, timeout=LAST_WAIT))
    threads.shutdown(wait=False, cancel_futures=True)
    until = time.monotonic() + LAST_WAIT
    blocking = [thread for thread in threading.enumerate() if thread.name.startswith(BLOCKING)]
    for thread in blocking:
        thread.join(max(0.0, until - time.monotonic()))
    return all(each.done() for each in left) and not any(thread.is_alive() for thread in blocking)


async def _serve(target: Service, process: Process) -> None:
    asyncio.get_running_loop().set_exception_handler(logs.left_over)
    async with _heartbeat(process), _probes(target, process), process.background(keep_secrets()):
        await target.serve(process)
    log.info("stopped")


async def keep_secrets(every: float = RENEW) -> None:
    """Have renewed secrets take effect, until cancelled; without files of secrets, there is nothing to do."""
    refused = ""
    while os.environ.get(DIRECTORY):
        await asyncio.sleep(every)
        try:
            names = renew()
        except (Unreadable, WrongSettings) as error:
            if str(error) != refused:
                log.error("renewed secrets are not used: they are wrong", extra={"error": str(error)})
            refused = str(error)
        else:
            refused = ""
            if names:
                log.info("secrets were renewed", extra={"variables": ", ".join(names)})


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
async def _probes(target: Service, process: Process) -> AsyncIterator[None]:
    if target.own_http and process.settings.http.management_port is None:
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
