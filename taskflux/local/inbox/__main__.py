"""`python -m taskflux.local.inbox --smtp-port 1025 --http-port 8025 --file inbox.sqlite`: the inbox as a process.

Without `--smtp-port` it is MSG91's stand-in alone, which needs nothing that TaskFlux itself does not: so it runs from
TaskFlux's image too, with `--host 0.0.0.0 --name msg91` where others ask it under that name.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn

from taskflux.local.inbox import web
from taskflux.local.inbox.mailbox import Mailbox
from taskflux.local.ports import LOOPBACK


class _Server(uvicorn.Server):
    """Uvicorn that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    smtp_port: int | None, http_port: int, file: Path, *, host: str = LOOPBACK, names: Sequence[str] = ()
) -> None:
    """Serve until SIGTERM or SIGINT: HTTP at `host`, to whoever asks for a loopback name or one of `names`.

    Raises:
        OSError: a port is taken, or the file cannot be opened.
    """
    with contextlib.closing(Mailbox(file)) as mailbox:
        listener = None if smtp_port is None else await _listen(mailbox, smtp_port)
        config = uvicorn.Config(
            web.application(mailbox, names),
            host=host,
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
            if listener is not None:
                listener.close()


async def _listen(mailbox: Mailbox, port: int) -> asyncio.Server:
    from taskflux.local.inbox import smtp  # aiosmtpd is part of the embedded stack alone

    return await smtp.listen(mailbox, port)


def main() -> int:
    """Parse the command line and serve; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m taskflux.local.inbox", description=__doc__)
    parser.add_argument("--smtp-port", type=int, help="unset: no mail is taken")
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--host", default=LOOPBACK, help="address that HTTP is served at")
    parser.add_argument("--name", action="append", default=[], help="host name that it is asked by, besides loopback")
    parser.add_argument("--file", type=Path, required=True, help="SQLite file that keeps what was received")
    arguments = parser.parse_args()
    try:
        asyncio.run(
            serve(arguments.smtp_port, arguments.http_port, arguments.file, host=arguments.host, names=arguments.name)
        )
    except OSError as error:
        print(f"the inbox cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
