"""`python -m taskflux.local.inbox --smtp-port 1025 --http-port 8025 --file inbox.sqlite`: the inbox as a process.

SMTP is plain, without AUTH. Every recipient is accepted, and nothing is forwarded. Without `--smtp-port`, the inbox is
only MSG91's stand-in. That one needs no package beyond TaskFlux's own, so it also runs from TaskFlux's image, with
`--host 0.0.0.0 --name msg91` where others reach it by that name.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taskflux.http import server
from taskflux.local.inbox import web
from taskflux.local.inbox.mailbox import Mailbox, headers_of
from taskflux.local.ports import LOOPBACK

if TYPE_CHECKING:
    from aiosmtpd.smtp import SMTP, Envelope, Session

MAX_BYTES = 64 * 1024 * 1024


class _Receiver:
    """aiosmtpd's hooks: a mail is answered 250 once it is stored."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        headers = headers_of(content)
        try:
            number = self._mailbox.add(
                "email",
                reference=headers.get("message-id", "").strip("<>"),
                sender=envelope.mail_from or "",
                recipients=envelope.rcpt_tos,
                subject=headers.get("subject", ""),
                content=content,
            )
        except sqlite3.Error as error:
            return f"452 4.3.1 not kept: {error}"
        return f"250 2.0.0 kept as {number}"


async def _listen(mailbox: Mailbox, port: int) -> asyncio.Server:
    """Accept mail on 127.0.0.1. Raises OSError if the port is taken."""
    from aiosmtpd.smtp import SMTP  # a part of the embedded stack alone

    loop = asyncio.get_running_loop()
    receiver = _Receiver(mailbox)

    def session() -> SMTP:
        return SMTP(
            receiver,
            hostname="localhost",
            ident="TaskFlux inbox",
            enable_SMTPUTF8=True,
            data_size_limit=MAX_BYTES,
            loop=loop,
        )

    return await loop.create_server(session, LOOPBACK, port)


async def serve(
    smtp_port: int | None, http_port: int, file: Path, *, host: str = LOOPBACK, names: Sequence[str] = ()
) -> None:
    """Serve until SIGTERM or SIGINT: HTTP at `host`, for requests to a loopback name or one of `names`.

    Raises:
        OSError: a port is taken, or the file cannot be opened.
    """
    with contextlib.closing(Mailbox(file)) as mailbox:
        listener = None if smtp_port is None else await _listen(mailbox, smtp_port)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        try:
            listening = socket.create_server((host, http_port))
            await server.serve(web.application(mailbox, names), listening, draining=ended, grace=2.0)
        finally:
            if listener is not None:
                listener.close()


def main() -> int:
    """Parse the command line and serve; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m taskflux.local.inbox", description=__doc__)
    parser.add_argument("--smtp-port", type=int, help="unset: no mail is accepted")
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--host", default=LOOPBACK, help="address to serve HTTP at")
    parser.add_argument("--name", action="append", default=[], help="host name to answer to, besides loopback")
    parser.add_argument("--file", type=Path, required=True, help="SQLite file for received messages")
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
