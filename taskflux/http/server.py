"""Serving an application on a port until the process drains."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from taskflux.http.connections import Connections, Demands
from taskflux.http.requests import KnownHosts, Requests, Submit
from taskflux.telemetry.logs import frames
from taskflux.worker.hosts import names
from taskflux.worker.process import Process
from taskflux.worker.settings import WrongSettings

BACKLOG: Final = 2048


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals drain the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        WrongSettings: naming the setting to change.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    if not 0 <= port <= 65535:
        raise WrongSettings(f"{port} is not a port: set TASKFLUX_HTTP__PORT to a number from 0 to 65535")
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                why = f"port {port} on {host} is in use: set TASKFLUX_HTTP__PORT to a free one, or stop what uses it"
            case errno.EACCES:
                why = f"port {port} on {host} is not permitted for this user: set TASKFLUX_HTTP__PORT to one above 1023"
            case errno.EADDRNOTAVAIL | socket.EAI_NONAME:
                why = f"{host} is not an address of this machine: set TASKFLUX_HTTP__HOST to one, or to 0.0.0.0"
            case _:
                why = (
                    f"cannot listen on {host}, port {port} (TASKFLUX_HTTP__HOST, TASKFLUX_HTTP__PORT): {error.strerror}"
                )
        raise WrongSettings(why) from error


async def serve_process(app: ASGIApp, process: Process, grace: float) -> None:
    """Serve `app` as a process's settings say, until it drains; see `serve`.

    Raises:
        WrongSettings: before anything is served.
    """
    http = process.settings.http
    await serve(
        app,
        listen(http.host, http.port),
        draining=process.draining,
        grace=grace,
        demands=Demands(
            request=http.request_seconds,
            head=http.head_seconds,
            idle=http.idle_seconds,
            connections=http.max_connections,
            head_bytes=http.max_head_bytes,
        ),
        linger=http.linger_seconds,
        hurry=process.hurry,
        listening=lambda port: process.started(),
        allowed=names(http.allowed_hosts),
    )


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    *,
    draining: asyncio.Event,
    grace: float,
    demands: Demands = Demands(),  # noqa: B008 - it is frozen
    linger: float = 0,
    hurry: asyncio.Event | None = None,
    listening: Callable[[int], None] = lambda port: None,
    allowed: Sequence[str] = (),
) -> None:
    """Serve `app` until `draining` is set; then accept no more connections and finish what is in flight.

    Args:
        listener: see `listen`; it is closed at the end.
        demands: the limits for clients.
        linger: seconds for which connections are still accepted after that: a load balancer learns late that it should
            send no more, and what it sends until then must not be refused. `hurry` ends it.
        grace: seconds that requests in flight have after that: half of them to start further work, and all of them to
            end. Then they are cut off.
        listening: called with the port once connections are accepted.
        allowed: the names by which the server may be called; none: any.
    """
    known = KnownHosts(app, allowed)
    requests = Requests(known if allowed else app)
    connections = Connections(demands, _submit(app, requests, known))
    logging.getLogger("uvicorn.error").addFilter(_without_values)
    server = _Server(_config(requests, connections, grace))
    listening(listener.getsockname()[1])
    serving = asyncio.create_task(server.serve([listener]))
    told = asyncio.create_task(draining.wait())
    watching = asyncio.create_task(connections.watch())
    try:
        await _first_of(watching, serving, told)
        if linger and not serving.done():
            await _pause(linger, hurry)
        connections.last_call(grace / 2)
        server.should_exit = True
        await _first_of(watching, serving)
        serving.result()
    finally:
        told.cancel()
        watching.cancel()
        await _cut_off(server)
        if not serving.done():
            serving.cancel()


def _config(app: ASGIApp, connections: Connections, grace: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http=connections.protocol(),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # below, it has a line for each request that is not HTTP
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(connections.demands.idle) + 60,  # `Demands.idle` is the limit
        timeout_graceful_shutdown=max(1, math.ceil(grace)),
    )


def _submit(app: ASGIApp, requests: Requests, known: KnownHosts) -> Submit | None:
    """What answers submits without the application, if that has it: `taskflux.http.submissions.Direct`."""
    direct = getattr(getattr(app, "state", None), "direct", None)
    if direct is None:
        return None

    take: Submit = partial(direct.take, requests)
    if not known.allowed:
        return take
    return lambda headers, *given: None if known.refuse(headers) else take(headers, *given)


async def _first_of(watching: asyncio.Task[None], *others: asyncio.Task[Any]) -> None:
    """Wait for one of the others. An error of `watching` ends the server: without it, no limit for clients applies."""
    await asyncio.wait((watching, *others), return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        watching.result()


async def _pause(seconds: float, hurry: asyncio.Event | None) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for((hurry or asyncio.Event()).wait(), seconds)


async def _cut_off(server: uvicorn.Server) -> None:
    """Cancel requests that outlived the grace, and wait for them; close listeners that are still open."""
    state = server.server_state
    for listener in getattr(server, "servers", ()):
        listener.close()
    for connection in list(state.connections):
        connection.transport.close()
    tasks = list(state.tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)


def _without_values(record: logging.LogRecord) -> bool:
    """Log only where an error happened: its text may quote a payload."""
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        record.msg, record.args = f"{type(error).__name__} while answering a request\n{frames(error)}", ()
        record.exc_info = record.exc_text = None
    return True
