"""E-mail over SMTP (RFC 5321), as a provider: a mail is composed, sent over a session of the pool, and settled."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Final, cast

from aiosmtplib import (
    SMTP,
    SMTPException,
    SMTPReadTimeoutError,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPStatus,
)
from aiosmtplib.email import quote_address
from aiosmtplib.response import SMTPResponse

from taskflux.providers import notify
from taskflux.providers.addresses import Address
from taskflux.providers.email import Email
from taskflux.providers.message import Message, compose
from taskflux.providers.provider import Call, Sending, provider
from taskflux.providers.smtp_replies import Deliveries, Kind, Reply, Stage, judge
from taskflux.providers.smtp_session import (
    LOST,
    Connection,
    Logins,
    Pool,
    SmtpSettings,
    Trusted,
    access_token,
    answer,
    dial,
    hang_up,
)
from taskflux.tasks.errors import (
    Ambiguous,
    InvalidPayload,
    JsonValue,
    Misconfigured,
    Permanent,
    TaskError,
    Transient,
    Unavailable,
)
from taskflux.telemetry import metrics
from taskflux.telemetry.tracing import Value

_FAILURES: Final = (SMTPException, OSError)
"""What aiosmtplib raises when a session breaks, or the server does not keep to the protocol."""

_LIGHT: Final = 256 * 1024
"""Size of a mail up to which it is composed on the event loop; a larger one is composed in a thread, and so is one
whose text is made from its html."""

_MOST_BYTES: Final = 64 * 1024
"""The most bytes of a reply, its unfinished line included."""


class Mailer:
    """Sends mails through one server, over a pool of connections. Made by `connect`."""

    def __init__(self, settings: SmtpSettings, hostname: str) -> None:
        self._settings = settings
        self._where: Mapping[str, Value] = {
            "network.protocol.name": "smtp",
            "server.address": settings.host or "",
            "server.port": settings.server_port,
        }
        self._sender = Address.parse(settings.sender)
        self._hostname = hostname
        self._trusted = Trusted(settings)
        self._pool = Pool(self._dial, most=settings.connections, max_age=settings.max_connection_age)
        self._logins = Logins()
        self._denied: str | None = None  # a denied recipient, while the server denies all
        self.auth_methods: tuple[str, ...] = ()
        """What the server offers for AUTH, as of the newest connection."""
        metrics.OPENED.zeros("smtp")
        metrics.PROVIDER_CONNECTIONS.labels("smtp", "used").follow(self._pool, lambda pool: pool.used)
        metrics.PROVIDER_CONNECTIONS.labels("smtp", "free").follow(self._pool, lambda pool: pool.free)

    async def send(
        self,
        email: Email,
        *,
        message_id: str,
        date: datetime,
        progress: Mapping[str, JsonValue] | None = None,
        attempt: int = 1,
    ) -> dict[str, JsonValue]:
        """Send to every recipient who has neither got the mail nor been refused in an earlier attempt.

        Args:
            email: the mail.
            message_id: the part of Message-ID before the @; the same for every attempt.
            date: the Date header; the same for every attempt.
            progress: what the earlier attempts noted.
            attempt: not used by an SMTP server; the notification service recognises repeats by it.

        Returns:
            `{"messageId", "delivered", "refused", "deferred"}`; the last three map addresses to the server's replies.

        Raises:
            Transient: some recipients are to be tried again; the error's progress says who has the mail.
            Permanent: nobody can get it.
            Ambiguous: the mail was sent and its answer was lost.
            Unavailable, Misconfigured: the server accepts no mail.
        """
        message = await self._compose(email, message_id, date)
        wanted = [address.envelope for address in email.recipients]
        deliveries = Deliveries(wanted, message.message_id)
        if progress:
            deliveries.resume(progress)
        try:
            if deliveries.open:
                await self._transact(message, deliveries)
        except TaskError as error:
            error.progress = deliveries.progress()
            raise
        return deliveries.conclude()

    async def check(self) -> None:
        """Connect, say EHLO, authenticate and NOOP, on a separate connection; also try the recipient last denied.

        Raises:
            Unavailable, Misconfigured: the server accepts no mail.
        """
        client = await self._dial()
        try:
            with Sending("NOOP", "the SMTP server", _FAILURES, unforeseen=Unavailable):
                (await answer(client.noop(), Stage.SESSION)).raise_for_server()
                await self._relays_again(client)
        finally:
            await hang_up(client)

    async def close(self) -> None:
        """Hang up every idle connection."""
        await self._pool.close()

    async def _dial(self, since: int | None = None) -> SMTP:
        client = await self._logins.run(lambda: dial(self._settings, self._hostname, self._trusted.context()), since)
        metrics.OPENED.labels("smtp").inc()
        self.auth_methods = tuple(client.server_auth_methods)
        return client

    async def _compose(self, email: Email, message_id: str, date: datetime) -> Message:
        weight = len(email.body or "") + len(email.html or "") + sum(len(each.content) for each in email.attachments)
        if weight <= _LIGHT and email.body is not None:
            message = self._composed(email, message_id, date)
        else:
            with Sending("the mail", "the SMTP server", ()):  # there may be no thread for it now
                message = await asyncio.to_thread(self._composed, email, message_id, date)
        if message.size > self._settings.max_message_bytes:
            raise InvalidPayload(
                f"the mail has {message.size} bytes, attachments encoded; max_message_bytes allows"
                f" {self._settings.max_message_bytes}"
            )
        return message

    def _composed(self, email: Email, message_id: str, date: datetime) -> Message:
        # Composed only of the task's fields: an error now is an error at every attempt, unless memory is short.
        with Sending("the mail", "the SMTP server", (), unforeseen=InvalidPayload):
            try:
                return compose(email, sender=self._sender, unique=message_id, date=date)
            except MemoryError as error:
                raise Transient("the mail was not sent: MemoryError") from error

    async def _transact(self, message: Message, deliveries: Deliveries) -> None:
        """Send `message` to all open recipients: one call, over a connection of the pool."""
        with (
            Call("smtp", "SMTP send", self._where) as span,
            Sending("the mail", "the SMTP server", _FAILURES) as sending,
        ):
            async with self._pool.connection(partial(self._dial, self._logins.failures)) as connection:
                replies = await self._dialogue(connection, message, deliveries.open, sending)
                await self._raise_for_denial(replies, deliveries, connection.client)
            deliveries.note(replies)
            worst = max(replies.values(), key=lambda reply: reply.code)
            span.note("smtp.recipients", len(replies))
            span.note("smtp.recipients.accepted", sum(reply.kind is Kind.ACCEPTED for reply in replies.values()))
            span.note("smtp.reply.code", worst.code)
            if worst.kind is not Kind.ACCEPTED:
                span.failed(str(worst.code), "Permanent" if worst.kind is Kind.REFUSED else "Transient")

    async def _raise_for_denial(self, replies: Mapping[str, Reply], deliveries: Deliveries, client: SMTP) -> None:
        """Raise if the server denied all recipients, has delivered to none, and we use no AUTH: it would deny any mail.

        Raises:
            Misconfigured: the server does not relay for us.
            Unavailable: it accepts no mail.
        """
        everybody = all(reply.denied or reply.barred for reply in replies.values())
        if not everybody or deliveries.delivered or self._settings.username is not None:
            self._denied = None
            return
        if not any(reply.denied for reply in replies.values()) and not await self._bars_us(client, replies):
            return
        self._denied, reply = next(iter(replies.items()))
        raise Misconfigured(denial(reply, self._denied, client.server_auth_methods))

    async def _relays_again(self, client: SMTP) -> None:
        """Try the recipient that was denied last.

        Raises:
            Unavailable, Misconfigured: the server accepts no mail.
        """
        if self._denied is None or not (self._denied + self._sender.envelope).isascii():
            return
        reply = await self._asked(client, self._denied)
        if reply.denied or (reply.barred and await self._bars_us(client, [self._denied])):
            raise Misconfigured(denial(reply, self._denied, client.server_auth_methods))

    async def _bars_us(self, client: SMTP, recipients: Container[str]) -> bool:
        """Whether the server, which denied access to `recipients`, also denies it to our sender as a recipient."""
        sender = self._sender.envelope
        if sender in recipients or not sender.isascii() or not client.is_connected:
            return False
        reply = await self._asked(client, sender)
        return reply.denied or reply.barred

    async def _asked(self, client: SMTP, recipient: str) -> Reply:
        """The server's reply to a recipient; MAIL FROM and RCPT TO send no mail.

        Raises:
            Unavailable, Misconfigured: the server accepts no mail.
        """
        reply = await answer(client.mail(self._sender.envelope), Stage.SENDER)
        reply.raise_for_server()
        if reply.kind is Kind.ACCEPTED:
            reply = await answer(client.rcpt(recipient), Stage.RECIPIENT)
            reply.raise_for_server()
        await _abandoned(client, {})
        return reply

    async def _dialogue(
        self, connection: Connection, message: Message, to: Sequence[str], sending: Sending
    ) -> dict[str, Reply]:
        """MAIL FROM, every RCPT TO, DATA and the mail; the last reply that concerns each address of `to`.

        Raises:
            Unavailable, Misconfigured: the server accepts no mail; no recipient has the mail.
            Permanent: the mail needs SMTPUTF8 and the server has none.
            Ambiguous: the mail was sent, and the reply is not valid.
        """
        sender, group = await self._mail_from(connection, message, to)
        client = connection.client
        if sender.kind is not Kind.ACCEPTED:
            return await _abandoned(client, dict.fromkeys(to, sender), group)
        replies: dict[str, Reply] = {}
        for address in to:
            said = client.rcpt(address, encoding=message.encoding) if group is None else group.reply()
            replies[address] = await answer(said, Stage.RECIPIENT)
            replies[address].raise_for_server()
        accepted = [address for address, reply in replies.items() if reply.kind is Kind.ACCEPTED]
        if not accepted:
            return await _abandoned(client, replies, group)
        data = await answer(client.execute_command(b"DATA") if group is None else group.reply(), Stage.DATA)
        data.raise_for_server()
        if data.kind is not Kind.ACCEPTED:
            return await _abandoned(client, replies | dict.fromkeys(accepted, data))
        outcome = await _mail_itself(client, message, self._settings.data_timeout, sending)
        outcome.raise_for_server()
        return replies | dict.fromkeys(accepted, outcome)

    async def _mail_from(
        self, connection: Connection, message: Message, to: Sequence[str]
    ) -> tuple[Reply, Group | None]:
        """Send MAIL FROM; with PIPELINING, together with every RCPT TO and DATA, whose replies the group has.

        A session that died while it was idle is replaced, once: no mail was sent on it yet.
        """
        while True:
            client = connection.client
            options = [f"SIZE={message.size}"] if client.supports_extension("size") else []
            if message.encoding != "ascii":
                if client.is_connected and not client.supports_extension("smtputf8"):
                    raise Permanent(
                        "an address has characters beyond ASCII before its @, and the SMTP server has no SMTPUTF8"
                    )
                options.append("SMTPUTF8")
            group = None
            if client.supports_extension("pipelining"):
                group = Group(client, _envelope(message, options, to), self._settings.command_timeout)
                begun: Awaitable[SMTPResponse] = group.reply()
            else:
                begun = client.mail(message.sender, options=options, encoding=message.encoding)
            try:
                reply = await answer(begun, Stage.SENDER)
            except LOST:
                if not connection.reused:
                    raise
            else:
                # 421 is also how a server ends a session that was idle for too long, or carried enough mails.
                if not (connection.reused and reply.code == 421):
                    reply.raise_for_server()
                    return reply, group
            await self._pool.renew(connection)  # then it is no longer one that was used before


class Group(asyncio.Protocol):
    """A group of commands, sent at once. It reads in the place of the session's own protocol until the last reply.

    aiosmtplib waits for the reply to each command, and drops what comes beyond it.
    """

    def __init__(self, client: SMTP, commands: Sequence[bytes], timeout: float) -> None:
        """Send. `timeout`: seconds that each reply may take.

        Raises:
            SMTPServerDisconnected: there is no session.
            ValueError: a command has a line break in it.
        """
        if client.transport is None or client.protocol is None or not client.is_connected:
            raise SMTPServerDisconnected("Connection lost")
        if any(b"\r" in command or b"\n" in command for command in commands):
            raise ValueError("a command has a line break in it")
        self.left = len(commands)
        """Replies that were not asked for yet."""
        self._client, self._timeout = client, timeout
        self._transport = cast("asyncio.Transport", client.transport)
        self._own: asyncio.Protocol = cast("asyncio.Protocol", client.protocol)
        self._missing = len(commands)
        self._line, self._text = bytearray(), bytearray()
        self._replies: deque[SMTPResponse] = deque()
        self._failed: Exception | None = None
        self._changed = asyncio.Event()
        self._transport.set_protocol(self)
        self._transport.write(b"".join(command + b"\r\n" for command in commands))

    async def reply(self) -> SMTPResponse:
        """The reply to the next command. After 421, as after an error, the session is closed.

        Raises:
            SMTPServerDisconnected, SMTPTimeoutError: there is none.
            SMTPResponseException: what the server sent is not a reply.
        """
        self.left -= 1
        while not self._replies:
            if self._failed is not None:
                self._client.close()
                raise self._failed
            self._changed.clear()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._changed.wait()
            except TimeoutError as error:
                self._client.close()
                raise SMTPReadTimeoutError("Timed out waiting for server response") from error
        reply = self._replies.popleft()
        if reply.code == SMTPStatus.domain_unavailable:
            self._client.close()
        return reply

    # What the event loop calls ----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._line += data
        while self._missing and (end := self._line.find(b"\n") + 1):
            line = bytes(self._line[:end])
            del self._line[:end]
            self._read(line)
        if len(self._line) + len(self._text) > _MOST_BYTES:
            self._fail(SMTPResponseException(SMTPStatus.invalid_response, "Response too long"))
        if not self._missing:
            self._transport.set_protocol(self._own)
        self._changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        lost = SMTPServerDisconnected("Connection lost")
        lost.__cause__ = error
        self._fail(lost)
        self._own.connection_lost(error)
        self._changed.set()

    def _read(self, line: bytes) -> None:
        """One line of a reply."""
        if not line[:3].isdigit():
            text = line.decode("utf-8", errors="ignore")
            self._fail(SMTPResponseException(SMTPStatus.invalid_response, f"Malformed SMTP response line: {text}"))
            return
        self._text += (b"\n" if self._text else b"") + line[4:].strip(b" \t\r\n")
        if line[3:4] != b"-":
            text = bytes(self._text).decode("utf-8", "surrogateescape")
            self._replies.append(SMTPResponse(int(line[:3]), text))
            self._text.clear()
            self._missing -= 1

    def _fail(self, error: Exception) -> None:
        """No reply comes any more."""
        self._failed, self._missing = self._failed or error, 0
        self._line.clear()
        self._text.clear()


def denial(reply: Reply, recipient: str, offered: Sequence[str]) -> str:
    """The reason for a server that does not relay for us; without the recipient, which is not the cause."""
    told = str(reply).replace(recipient, "…")
    if offered:
        return f"the SMTP server accepts no mail without AUTH ({told}): set TASKFLUX_SMTP__USERNAME and PASSWORD"
    return f"the SMTP server does not relay for us ({told}): it must allow this host's address, and offers no AUTH"


async def _mail_itself(client: SMTP, message: Message, timeout: float, sending: Sending) -> Reply:
    """Write the mail and wait for the reply that settles it.

    `SMTP.data` has one timeout for DATA and for the mail, and does not tell which of the two was lost.

    Raises:
        Ambiguous: the reply settles nothing.
    """
    if client.protocol is None:
        raise SMTPServerDisconnected("Connection lost")
    sending.begin()
    client.protocol.write(message.wire)
    code, text = await client.protocol.read_response(timeout=timeout)
    if code == 421:
        client.close()
    reply = judge(code, text, Stage.MAIL)
    if reply.kind is Kind.MEANINGLESS:
        raise Ambiguous(f"the mail was sent, but the SMTP server's reply {reply} is not valid there")
    return reply


def _envelope(message: Message, options: Sequence[str], to: Sequence[str]) -> list[bytes]:
    """The commands before the mail, as `SMTP.mail` and `SMTP.rcpt` send them."""
    sender = " ".join([f"MAIL FROM:{quote_address(message.sender)}", *options])
    recipients = [f"RCPT TO:{quote_address(address)}" for address in to]
    return [*(command.encode(message.encoding) for command in (sender, *recipients)), b"DATA"]


async def _abandoned(client: SMTP, replies: dict[str, Reply], group: Group | None = None) -> dict[str, Reply]:
    """The replies, once the server has forgotten the envelope; a session that cannot do even that is closed.

    So is one whose server waits for a mail: it has accepted the group's DATA without a sender or a recipient.
    """
    try:
        while group is not None and group.left:
            if (await group.reply()).code == SMTPStatus.start_input:
                client.close()
                return replies
        await client.rset()
    except (SMTPResponseException, *LOST):
        client.close()
    return replies


@provider("smtp", settings=SmtpSettings, through=notify.mails)
@asynccontextmanager
async def connect(settings: SmtpSettings) -> AsyncIterator[Mailer]:
    """A `Mailer`. It opens its first connection with its first mail: an unreachable server does not prevent a start.

    Raises:
        Misconfigured: `host` is not set, or `ca_file` or `access_token_file` cannot be read.
    """
    if not settings.host:
        raise Misconfigured("host is not set: set TASKFLUX_SMTP__HOST to the SMTP server")
    hostname = await asyncio.to_thread(socket.getfqdn) if settings.hostname is None else settings.hostname
    await asyncio.to_thread(access_token, settings)
    mailer = Mailer(settings, hostname)
    try:
        yield mailer
    finally:
        await mailer.close()
