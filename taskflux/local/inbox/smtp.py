"""The inbox's SMTP side: plain, no AUTH, every recipient welcome, nothing sent on."""

from __future__ import annotations

import asyncio
import sqlite3

from aiosmtpd.smtp import SMTP, Envelope, Session

from taskflux.local.inbox import reading
from taskflux.local.inbox.mailbox import Mailbox
from taskflux.local.ports import LOOPBACK

MAX_BYTES = 64 * 1024 * 1024


class _Receiver:
    """aiosmtpd's hooks: a mail is answered 250 once it is kept."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        headers = reading.headers(content)
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


async def listen(mailbox: Mailbox, port: int) -> asyncio.Server:
    """Listen on 127.0.0.1.

    Raises:
        OSError: the port is taken.
    """
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
