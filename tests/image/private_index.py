"""A private package index: HTTPS with a private CA, and a password."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import trustme

from taskflux.local.ports import LOOPBACK

CREDENTIALS = "builder:a-secret-of-the-index"


@dataclass(frozen=True, slots=True)
class PrivateIndex:
    """Its address, and the credentials that it requires."""

    url: str
    ca: Path
    served: list[str]
    """The files that were asked for, with the password."""


class _Handler(SimpleHTTPRequestHandler):
    """A directory of directories, as PEP 503 wants it, for those who know the password."""

    def __init__(self, *arguments: object, served: list[str], **named: object) -> None:
        self._served = served
        super().__init__(*arguments, **named)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        expected = f"Basic {base64.b64encode(CREDENTIALS.encode()).decode()}"
        if self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._served.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        """No one reads it."""


@contextmanager
def serve(wheels: Path, directory: Path) -> Iterator[PrivateIndex]:
    """Serve the wheels of a folder on 127.0.0.1 until the block ends; what is needed for it is put in `directory`."""
    simple = directory / "simple"
    for wheel in wheels.glob("*.whl"):
        project = simple / wheel.name.partition("-")[0].lower().replace("_", "-").replace(".", "-")
        project.mkdir(parents=True, exist_ok=True)
        (project / wheel.name).symlink_to(wheel)
    authority = trustme.CA()
    ca = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(LOOPBACK).configure_cert(context)
    served: list[str] = []
    server = ThreadingHTTPServer((LOOPBACK, 0), partial(_Handler, served=served, directory=str(directory)))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield PrivateIndex(f"https://{CREDENTIALS}@{LOOPBACK}:{server.server_port}/simple/", ca, served)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
