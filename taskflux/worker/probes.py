"""`/livez`, `/readyz` and `/metrics` of a process that serves nothing else.

They are answered by a thread of their own, so that livez tells when the loop hangs instead of hanging with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType
from typing import Any, Final

from taskflux.telemetry.exposition import SWITCHED_OFF, VARY, compressed, shown
from taskflux.telemetry.instruments import switched_off
from taskflux.worker.settings import HttpSettings, WrongSettings

HANGS_AFTER: Final = 10.0
"""Seconds without a heartbeat of the loop after which livez fails."""


class Health:
    """What the probes ask. A store that is away is a metric, not a reason to be restarted."""

    def __init__(self) -> None:
        self.started = False
        self._beat = time.monotonic()

    def beat(self) -> None:
        """The loop turns."""
        self._beat = time.monotonic()

    @property
    def live(self) -> bool:
        """Whether the loop has turned lately."""
        return time.monotonic() - self._beat < HANGS_AFTER


class ProbeServer:
    """Serves the probes of `health` from a thread."""

    def __init__(self, settings: HttpSettings, health: Health) -> None:
        try:
            self._server = _Server((settings.host, settings.port), _Handler)
        except OSError as error:
            raise WrongSettings(
                f"TASKFLUX_HTTP__HOST and TASKFLUX_HTTP__PORT: cannot listen on {settings.host}:{settings.port}"
                f" ({error.strerror or error}): choose another, or 0 for any free port"
            ) from error
        self._server.health = health

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        Thread(target=self._server.serve_forever, name="probes", daemon=True).start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    health: Health


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        health = self.server.health
        match self.path.split("?")[0]:
            case "/livez":
                self._answer(200 if health.live else 503, b"ok" if health.live else b"the event loop hangs")
            case "/readyz":
                self._answer(200 if health.started else 503, b"ok" if health.started else b"starting")
            case "/metrics":
                self._show_metrics()
            case _:
                self._answer(404, b"here are /livez, /readyz and /metrics")

    def _show_metrics(self) -> None:
        if switched_off():
            self._answer(404, SWITCHED_OFF)
            return
        body, content_type = shown(self.headers.get("Accept", ""))
        smaller = compressed(body, self.headers.get("Accept-Encoding", ""))
        if smaller is None:
            self._answer(200, body, content_type, {"Vary": VARY})
        else:
            self._answer(200, smaller, content_type, {"Vary": VARY, "Content-Encoding": "gzip"})

    def _answer(
        self,
        status: int,
        body: bytes,
        content_type: str = "text/plain; charset=utf-8",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds; nobody reads about them."""
