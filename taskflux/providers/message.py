"""The bytes that an SMTP server is given for a mail. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from email.header import Header
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Final, Literal

from taskflux.providers.email import Address, Email
from taskflux.tasks.errors import InvalidPayload

# Everything in seven bits: no server on the way has to convert, and no signature breaks.
_POLICY: Final = SMTP.clone(cte_type="7bit")
_CRLF: Final = "\r\n"
_WIDTH: Final = 76
_LONGEST_LINE: Final = 998  # RFC 5322, 2.1.1

_FORBIDDEN: Final = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029]")
_PLAIN: Final = re.compile(r"[!-~]+(?: [!-~]+)*")
_ATOMS: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Message:
    """A mail ready for one or more SMTP transactions.

    `wire` is dot-stuffed and closed by the end-of-data line; `size` is what RFC 1870's SIZE means, without either;
    `encoding` is that of the envelope, utf-8 where an address needs SMTPUTF8 (RFC 6531) and else ascii.
    """

    sender: str
    message_id: str
    wire: bytes
    size: int
    encoding: Literal["ascii", "utf-8"]


def compose(email: Email, *, sender: Address, unique: str, date: datetime) -> Message:
    """The message, whole: text first, the html alternative, then the attachments.

    The headers are written here and not by `EmailMessage`, which decodes encoded words in what it is given (a line
    break within one becomes a header of its own, CVE-2024-6923) and folds a long URL of `List-Unsubscribe` into
    something no reader understands. Bcc is on the envelope only.

    Raises:
        InvalidPayload: a field cannot stand in a header; the sentence names it.
    """
    utf8 = any(address.needs_utf8 for address in [sender, *email.recipients, *email.reply_to])
    message_id = f"<{unique}@{sender.envelope.rpartition('@')[2]}>"
    head = b""
    for name, value in _headers(email, sender, message_id, date):
        field = f"{name}: {value}\r\n".encode()
        if any(len(line) > _LONGEST_LINE for line in field.split(b"\r\n")):
            raise InvalidPayload(f"{name} has a word that is too long for a header line")
        head += field
    data = _LINE_END.sub(b"\r\n", head + _content(email).as_bytes(policy=_POLICY))
    if not data.endswith(b"\r\n"):
        data += b"\r\n"
    stuffed = data.replace(b"\r\n.", b"\r\n..")
    return Message(sender.envelope, message_id, stuffed + b".\r\n", len(data), "utf-8" if utf8 else "ascii")


def _headers(email: Email, sender: Address, message_id: str, date: datetime) -> Iterator[tuple[str, str]]:
    """Each header's name and its value, folded."""
    for name, addresses in (("From", [sender]), ("To", email.to), ("Cc", email.cc), ("Reply-To", email.reply_to)):
        if addresses:
            yield name, ",\r\n ".join(_mailbox(name, address) for address in addresses)
    yield "Subject", _field("Subject", email.subject)
    yield "Date", format_datetime(date)
    yield "Message-ID", message_id
    for name, value in email.headers.items():
        yield name, _field(name, value)


def _content(email: Email) -> EmailMessage:
    content = EmailMessage(policy=_POLICY)
    content.set_content(email.body)
    if email.html is not None:
        content.add_alternative(email.html, subtype="html")
    for attachment in email.attachments:
        if _FORBIDDEN.search(attachment.filename) or "=?" in attachment.filename:
            raise InvalidPayload("attachments.filename has characters that cannot stand in a header")
        maintype, _, subtype = attachment.content_type.partition("/")
        content.add_attachment(attachment.content, maintype=maintype, subtype=subtype, filename=attachment.filename)
    return content


def _field(name: str, value: str) -> str:
    if _FORBIDDEN.search(value) or not re.fullmatch("[!-9;-~]+", name):
        raise InvalidPayload(f"{name} has a line break or another character that cannot stand in a header")
    plain = _PLAIN.fullmatch(value) is not None and "=?" not in value
    header = Header(value, "us-ascii" if plain else "utf-8", maxlinelen=_WIDTH, header_name=name)
    return header.encode(linesep=_CRLF)


def _mailbox(name: str, address: Address) -> str:
    shown = address.name
    if _FORBIDDEN.search(shown) or _FORBIDDEN.search(address.spec):
        raise InvalidPayload(f"{name} has a line break or another character that cannot stand in a header")
    if not shown:
        return address.envelope
    if not shown.isascii() or "=?" in shown:
        shown = Header(shown, "utf-8", maxlinelen=_WIDTH, header_name=name).encode(linesep=_CRLF)
    elif not _ATOMS.fullmatch(shown):
        shown = '"' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{shown} <{address.envelope}>"
