"""A small real HTTP server that answers as it is told, and the command in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from click.testing import CliRunner, Result

from taskflux.cli import main

Scripted = tuple[int, Any]
"""Status and JSON document; a document that is bytes is sent as it is, status 0 hangs up without a word."""


@dataclass
class Server:
    """Answers each call (`GET /tasks`) by its script, the last entry for all further ones; keeps what was asked."""

    url: str = ""
    scripts: dict[str, list[Scripted]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)

    def answer(self, call: str, *script: Scripted) -> None:
        self.scripts[call] = list(script)

    def take(self, call: str) -> Scripted:
        script = self.scripts.get(call) or [(404, problem("not-found", 404, "There is nothing at this address"))]
        return script.pop(0) if len(script) > 1 else script[0]

    def run(self, *words: str, stdin: str | None = None) -> Result:
        """The command against this server."""
        return CliRunner().invoke(main, [*words], input=stdin, env={"TASKFLUX_API__URL": self.url})


def problem(slug: str, status: int, title: str, **more: Any) -> dict[str, Any]:
    return {"type": f"/problems/{slug}", "title": title, "status": status, "detail": "told", **more}


@contextmanager
def scripted_server() -> Iterator[Server]:
    script = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            path, _, query = self.path.partition("?")
            script.asked.append(
                (
                    f"{self.command} {path}",
                    {name.lower(): value for name, value in self.headers.items()},
                    json.loads(body) if body else query,
                )
            )
            status, document = script.take(f"{self.command} {path}")
            if status == 0:
                self.close_connection = True
                return
            sent = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "text/html" if isinstance(document, bytes) else "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def calls(server: Server) -> Sequence[str]:
    """What was asked, in its order."""
    return [call for call, _, _ in server.asked]
