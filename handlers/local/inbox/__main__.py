"""`python -m handlers.local.inbox --smtp-port 1025 --http-port 8025 --file inbox.sqlite`: the inbox as a process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from handlers.local.inbox import smtp, web
from handlers.local.inbox.mailbox import Mailbox
from handlers.local.ports import LOOPBACK


class _Server(uvicorn.Server):
    """Uvicorn that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(smtp_port: int, http_port: int, file: Path) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        OSError: a port is taken, or the file cannot be opened.
    """
    with contextlib.closing(Mailbox(file)) as mailbox:
        listener = await smtp.listen(mailbox, smtp_port)
        config = uvicorn.Config(
            web.application(mailbox),
            host=LOOPBACK,
            port=http_port,
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
        )
        server = _Server(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, setattr, server, "should_exit", True)
        try:
            await server.serve()
        finally:
            listener.close()


def main() -> int:
    """Parse the command line and serve; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m handlers.local.inbox", description=__doc__)
    parser.add_argument("--smtp-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True, help="SQLite file that keeps what was received")
    arguments = parser.parse_args()
    try:
        asyncio.run(serve(arguments.smtp_port, arguments.http_port, arguments.file))
    except OSError as error:
        print(f"the inbox cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
