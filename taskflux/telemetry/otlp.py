"""The way to an OTLP receiver: HTTP, with another try where the protocol asks for one.

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import os
import ssl
from threading import Event
from time import monotonic
from typing import Final

import httpx

from taskflux.tasks.errors import Misconfigured
from taskflux.telemetry.settings import OtelSettings

TIMEOUT: Final = 5.0
"""Seconds that one export may take, all its tries together."""
AGAIN: Final = frozenset({429, 502, 503, 504})
PAUSES: Final = (0.2, 0.4, 0.8, 1.6)
"""Seconds before the next try."""


class OtlpClient:
    """Sends encoded requests, from one thread."""

    def __init__(self, settings: OtelSettings, timeout: float = TIMEOUT) -> None:
        """Connect at the first request.

        Raises:
            Misconfigured: a certificate cannot be read.
        """
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._url = settings.traces_url
        self._timeout = timeout
        self._closed = Event()
        self._http = httpx.Client(
            headers={"content-type": "application/x-protobuf"} | headers,
            verify=self._url.startswith("https:") and _trust(),
        )

    def send(self, request: bytes) -> bool:
        """Whether the receiver took it. Whatever goes wrong is an answer, no error."""
        until = monotonic() + self._timeout
        for pause in (*PAUSES, None):
            status = self._post(request, until - monotonic())
            if status is not None and status not in AGAIN:
                return 200 <= status < 300
            if pause is None or monotonic() + pause >= until or self._closed.wait(pause):
                break
        return False

    def _post(self, request: bytes, seconds: float) -> int | None:
        """The answer's status; None without one."""
        try:
            return self._http.post(self._url, content=request, timeout=seconds).status_code
        except httpx.HTTPError:
            return None

    def close(self) -> None:
        """Try nothing again; whoever has sent the last request calls it."""
        self._closed.set()
        self._http.close()


def _trust() -> ssl.SSLContext:
    """Certificates from where OpenTelemetry's own variables say."""
    context = httpx.create_ssl_context()
    authority, certificate, key = (_variable(name) for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"))
    try:
        if authority is not None:
            context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:  # an SSLError is one, too
        named = ", ".join(path for path in (authority, certificate, key) if path is not None)
        raise Misconfigured(f"the OTEL_EXPORTER_OTLP_… certificates ({named}) cannot be used: {error}") from error
    return context


def _variable(name: str) -> str | None:
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") or None
