"""A program with `taskflux`'s commands but without their work, for the tests of what starts and supervises it.

Every call is appended to `calls` in the data directory, as `<command words>`.
"""

from __future__ import annotations

import http.server
import os
import signal
import sys
from pathlib import Path
from typing import Any


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main(words: list[str]) -> None:
    if (origin := os.environ.get("TASKFLUX_WORKER__ORIGIN")) is not None:
        with (Path(origin) / "calls").open("a") as calls:
            calls.write(" ".join(words) + "\n")
    if words[0] == "dev":
        from taskflux.local.dev import main as dev

        port, data_dir = (words[words.index(name) + 1] for name in ("--port", "--data-dir"))
        tiny = (sys.executable, __file__)
        sys.exit(dev(int(port), Path(data_dir), samples=False, detached="--detached" in words, cli=tiny))
    if words[0] == "handlers":
        from taskflux.cli import main as command

        command(words)
    if words[0] != "run":
        return
    print(f"{words[1]} speaks", flush=True)
    server = http.server.HTTPServer(("127.0.0.1", int(os.environ["TASKFLUX_HTTP__PORT"])), Answers)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
