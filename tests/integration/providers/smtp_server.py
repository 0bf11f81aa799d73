"""Real SMTP servers on loopback that behave, or misbehave, as a test says."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any, cast

import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

DROP = "drop the connection"
HANG = "never answer"


@dataclass(frozen=True)
class Mail:
    sender: str
    recipients: list[str]
    data: bytes
    options: list[str]

    @property
    def message(self) -> EmailMessage:
        return message_from_bytes(self.data, policy=default)


class Postbox:
    """Keeps what arrives, and answers as `replies` says.

    `replies` maps MAIL, DATA, RSET, AUTH or a recipient's address to replies given in turn before the usual one.
    """

    pipelining = False
    """Whether EHLO offers it; also for `server_that_says`."""

    def __init__(self, credentials: tuple[str, str] | None = None) -> None:
        self.mails: list[Mail] = []
        self.replies: dict[str, list[str]] = defaultdict(list)
        self.credentials = credentials
        self.logins: list[str] = []
        self.connections = 0
        self.together: asyncio.Barrier | None = None
        self.port = 0

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, offered: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*offered[:-1], *(["250-PIPELINING"] if self.pipelining else []), offered[-1]]

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = await self._reply(server, "MAIL")
        if reply.startswith("2"):
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return reply

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = await self._reply(server, address)
        if reply.startswith("2"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.together is not None:
            await self.together.wait()
        reply = await self._reply(server, "DATA")
        if reply.startswith("2"):
            content = cast("bytes", envelope.original_content)
            self.mails.append(Mail(str(envelope.mail_from), envelope.rcpt_tos, content, envelope.mail_options))
        return reply

    async def handle_RSET(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        return await self._reply(server, "RSET")

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        self.logins.append(mechanism)
        if self.replies["AUTH"]:
            return AuthResult(success=False, handled=False, message=self.replies["AUTH"].pop(0))
        given = isinstance(data, LoginPassword) and (data.login.decode(), data.password.decode())
        return AuthResult(success=given == self.credentials, handled=False)

    async def _reply(self, server: SMTP, key: str) -> str:
        reply = self.replies[key].pop(0) if self.replies[key] else "250 2.0.0 Ok"
        if reply == DROP:
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
        if reply in (DROP, HANG):
            await asyncio.Event().wait()  # until the connection goes, which cancels the session
        return reply


class TokenPostbox(Postbox):
    """A postbox that lets in who has the right access token (XOAUTH2), and offers no other AUTH with `ONLY_XOAUTH2`."""

    async def auth_XOAUTH2(self, server: SMTP, args: list[str]) -> AuthResult:
        self.logins.append("XOAUTH2")
        assert self.credentials is not None
        user, token = self.credentials
        if b64decode(args[1]) == f"user={user}\x01auth=Bearer {token}\x01\x01".encode():
            return AuthResult(success=True, auth_data=user)
        # What Google and Microsoft do: an error as a challenge, an empty answer, and only then 535.
        await server.push("334 " + b64encode(b'{"status":"400","schemes":"Bearer"}').decode())
        await server._reader.readline()
        return AuthResult(success=False, handled=False)


ONLY_XOAUTH2 = {"auth_exclude_mechanism": ["LOGIN", "PLAIN"]}


@asynccontextmanager
async def smtp_server(
    postbox: Postbox,
    *,
    tls: str = "none",
    certificate: trustme.LeafCert | None = None,
    **options: Any,
) -> AsyncIterator[Postbox]:
    """`postbox`, served at its `port` with `tls` as `SmtpSettings` calls it."""
    loop = asyncio.get_running_loop()
    context: ssl.SSLContext | None = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
    sessions: list[SMTP] = []

    def session() -> SMTP:
        postbox.connections += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # AUTH without STARTTLS: implicit TLS is below aiosmtpd
            server = SMTP(
                postbox,
                hostname="mail.test",
                loop=loop,
                tls_context=context if tls == "starttls" else None,
                require_starttls=tls == "starttls",
                authenticator=postbox.authenticate,
                auth_required=postbox.credentials is not None,
                auth_require_tls=tls == "starttls",
                **options,
            )
        sessions.append(server)
        return server

    server = await loop.create_server(session, "127.0.0.1", 0, ssl=context if tls == "implicit" else None)
    postbox.port = server.sockets[0].getsockname()[1]
    try:
        yield postbox
    finally:
        server.close()
        for open_session in sessions:
            if open_session.transport is not None:
                cast("asyncio.Transport", open_session.transport).abort()
        await server.wait_closed()


@asynccontextmanager
async def server_that_greets(greeting: bytes | None) -> AsyncIterator[int]:
    """The port of a server that says `greeting` and hangs up, or accepts a connection and says nothing."""
    gone = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if greeting is None:
            await gone.wait()
        else:
            writer.write(greeting)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        gone.set()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def server_that_says(**replies: bytes) -> AsyncIterator[int]:
    """The port of a server that answers each command by its name, and a mail as `content`, with bytes as they are.

    Others are answered as usual; b"" hangs up.
    """
    ehlo = b"250-mail.test\r\n250 PIPELINING\r\n" if Postbox.pipelining else b"250 mail.test\r\n"
    usual = {"greeting": b"220 mail.test\r\n", "ehlo": ehlo, "data": b"354 go on\r\n"}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            command = "greeting"
            while said := replies.get(command, usual.get(command, b"250 Ok\r\n")):
                for at in range(0, len(said), 65536):
                    writer.write(said[at : at + 65536])
                    await writer.drain()
                if command == "data" and said.startswith(b"354"):
                    await reader.readuntil(b"\r\n.\r\n")
                    command = "content"
                else:
                    command = (await reader.readuntil(b"\r\n")).split()[0].decode().lower()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=2**20)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
