"""One mail over one SMTP session: MAIL FROM, every RCPT TO, DATA, the mail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from aiosmtplib import SMTP, SMTPResponseException, SMTPServerDisconnected, SMTPTimeoutError

from taskflux.providers.mime import Message
from taskflux.providers.smtp_pool import Connection, Pool
from taskflux.providers.smtp_replies import Kind, Reply, Stage, judge
from taskflux.providers.smtp_session import answer
from taskflux.tasks.errors import Ambiguous, Permanent, Unavailable

_LOST: Final = (SMTPServerDisconnected, SMTPTimeoutError, OSError)


async def transact(
    pool: Pool, connection: Connection, message: Message, to: Sequence[str], *, data_timeout: float
) -> dict[str, Reply]:
    """Send `message` to every address of `to`, and return the last reply that concerns each.

    Raises:
        Unavailable, Misconfigured: the server takes nothing from us; no recipient has the mail.
        Permanent: the mail needs SMTPUTF8 and the server has none.
        Ambiguous: the mail was sent and its answer was lost.
    """
    with _nothing_sent():
        sender = await _mail_from(pool, connection, message)
        client = connection.client
        if sender.kind is not Kind.ACCEPTED:
            return await _abandoned(client, dict.fromkeys(to, sender))
        replies = {address: await _rcpt_to(client, address, message) for address in to}
        accepted = [address for address, reply in replies.items() if reply.kind is Kind.ACCEPTED]
        if not accepted:
            return await _abandoned(client, replies)
        data = await answer(client.execute_command(b"DATA"), Stage.DATA)
        data.raise_for_server()
        if data.code != 354:
            return await _abandoned(client, replies | dict.fromkeys(accepted, data))
    with _maybe_sent():
        outcome = await _mail_itself(client, message, data_timeout)
    outcome.raise_for_server()
    return replies | dict.fromkeys(accepted, outcome)


async def _mail_from(pool: Pool, connection: Connection, message: Message) -> Reply:
    """Begin. A session that died while it lay idle is replaced, once: nothing has been said on it yet."""
    try:
        reply = await _begin(connection.client, message)
    except _LOST:
        if not connection.reused:
            raise
    else:
        # 421 is also how a server ends a session that was idle for too long, or carried enough mails.
        if not (connection.reused and reply.code == 421):
            reply.raise_for_server()
            return reply
    await pool.renew(connection)
    reply = await _begin(connection.client, message)
    reply.raise_for_server()
    return reply


async def _begin(client: SMTP, message: Message) -> Reply:
    options = [f"SIZE={message.size}"] if client.supports_extension("size") else []
    if message.utf8:
        if client.is_connected and not client.supports_extension("smtputf8"):
            raise Permanent("an address has characters beyond ASCII before its @, and the SMTP server has no SMTPUTF8")
        options.append("SMTPUTF8")
    return await answer(client.mail(message.sender, options=options, encoding=_encoding(message)), Stage.SENDER)


async def _rcpt_to(client: SMTP, address: str, message: Message) -> Reply:
    reply = await answer(client.rcpt(address, encoding=_encoding(message)), Stage.RECIPIENT)
    reply.raise_for_server()
    return reply


async def _mail_itself(client: SMTP, message: Message, timeout: float) -> Reply:
    """Write the mail and wait for the reply that settles it.

    `SMTP.data` has one timeout for DATA and for the mail, and does not tell which of the two was lost.
    """
    if client.protocol is None:
        raise SMTPServerDisconnected("Connection lost")
    client.protocol.write(message.wire)
    code, text = await client.protocol.read_response(timeout=timeout)
    if code == 421:
        client.close()
    return judge(code, text, Stage.DATA)


async def _abandoned(client: SMTP, replies: dict[str, Reply]) -> dict[str, Reply]:
    """The replies, once the server has forgotten the envelope; a session that cannot do even that is closed."""
    try:
        await client.rset()
    except (SMTPResponseException, *_LOST):
        client.close()
    return replies


def _encoding(message: Message) -> str:
    return "utf-8" if message.utf8 else "ascii"


@contextmanager
def _nothing_sent() -> Iterator[None]:
    try:
        yield
    except _LOST as error:
        raise Unavailable(f"the SMTP server went away before it had the mail: {error}") from error


@contextmanager
def _maybe_sent() -> Iterator[None]:
    try:
        yield
    except (SMTPResponseException, *_LOST) as error:
        raise Ambiguous(f"the mail was sent, and the SMTP server's answer was lost: {error}") from error
