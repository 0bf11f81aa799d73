"""The bytes of a mail for an SMTP server. No I/O."""

from __future__ import annotations

import re
from base64 import encodebytes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, quote
from secrets import token_hex
from typing import Final, Literal

from taskflux.providers.addresses import Address
from taskflux.providers.email import Attachment, ContentType, Email
from taskflux.providers.headers import (
    Kind,
    WrongHeader,
    encoded_words,
    field,
    folded,
    kind_of,
    mime_field,
    refuse_line_breaks,
)
from taskflux.providers.plain_text import plain_text
from taskflux.tasks.errors import InvalidPayload

# Everything in seven bits: no server on the way has to convert it, which would break signatures.
_POLICY: Final = SMTP.clone(cte_type="7bit")

_ATOMS: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LONGEST_NAME: Final = 500  # a longer one is folded within itself
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Message:
    """A mail ready for one or more SMTP transactions.

    `wire` is dot-stuffed and closed by the end-of-data line; `size` is that of RFC 1870's SIZE, without either;
    `encoding` is that of the envelope, utf-8 where an address needs SMTPUTF8 (RFC 6531) and else ascii.
    """

    sender: str
    message_id: str
    wire: bytes
    size: int
    encoding: Literal["ascii", "utf-8"]


def compose(email: Email, *, sender: Address, unique: str, date: datetime) -> Message:
    """The message, whole: text first, the html alternative, then the attachments. Bcc is on the envelope only.

    Raises:
        InvalidPayload: a header cannot have a field's value; the sentence names the header.
    """
    utf8 = any(address.needs_utf8 for address in [sender, *email.recipients, *email.reply_to])
    message_id = f"<{unique}@{sender.envelope.rpartition('@')[2]}>"
    try:
        content = _content(email)
        fields = [*_fields(email, sender, message_id, date), "MIME-Version: 1.0"]
    except WrongHeader as error:
        raise InvalidPayload(str(error)) from error
    head = "".join(f"{each}\r\n" for each in fields).encode()
    data = head + bytes(content)
    if not data.endswith(b"\r\n"):
        data += b"\r\n"
    stuffed = data.replace(b"\r\n.", b"\r\n..")
    return Message(sender.envelope, message_id, stuffed + b".\r\n", len(data), "utf-8" if utf8 else "ascii")


def _fields(email: Email, sender: Address, message_id: str, date: datetime) -> Iterator[str]:
    """Each header field, folded."""
    for name, addresses in (("From", [sender]), ("To", email.to), ("Cc", email.cc), ("Reply-To", email.reply_to)):
        if addresses:
            yield folded(name, _mailboxes(name, addresses))
    yield field("Subject", email.subject)
    yield f"Date: {format_datetime(date)}"
    yield f"Message-ID: {message_id}"
    for name, value in email.headers.items():
        if value.strip(" ") or kind_of(name) is Kind.TEXT:  # References without an id is invalid (RFC 5322)
            yield field(name, value)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a MIME tree: its header fields and its body. The line end before a boundary is the boundary's."""

    fields: Sequence[str]
    body: bytes

    def __bytes__(self) -> bytes:
        return "".join(f"{each}\r\n" for each in self.fields).encode("ascii") + b"\r\n" + self.body


def _content(email: Email) -> _Part:
    """The tree: mixed(alternative(text, related(html, inline files)), files), without unneeded levels."""
    text = plain_text(email.html or "") if email.body is None else email.body
    body, beside = _text(text, "plain"), email.attachments
    if email.html is not None:
        html = _text(email.html, "html")
        shown = [each for each in email.attachments if each.inline and each.cid]
        if shown:
            html = _multipart("related", [html, *map(_file, shown)], type="text/html")
            beside = [each for each in email.attachments if not (each.inline and each.cid)]
        body = _multipart("alternative", [body, html]) if text or email.body is not None else html
    return _multipart("mixed", [body, *map(_file, beside)]) if beside else body


def _text(text: str, subtype: str) -> _Part:
    content = EmailMessage(policy=_POLICY)
    content.set_content(text, subtype=subtype)
    encoding = str(content["Content-Transfer-Encoding"])
    fields = [f'Content-Type: text/{subtype}; charset="utf-8"', f"Content-Transfer-Encoding: {encoding}"]
    return _Part(fields, _LINE_END.sub(b"\r\n", str(content.get_payload()).encode("ascii")))


def _file(attachment: Attachment) -> _Part:
    if "=?" in attachment.filename:
        raise WrongHeader("attachments.filename has characters that a header cannot have")
    disposition = "inline" if attachment.inline else "attachment"
    fields = [
        mime_field("Content-Type", *ContentType.parse(attachment.content_type)),
        "Content-Transfer-Encoding: base64",
        mime_field("Content-Disposition", disposition, [("filename", attachment.filename)]),
    ]
    if attachment.cid:
        fields.append(f"Content-ID: <{attachment.cid}>")
    return _Part(fields, encodebytes(attachment.content).rstrip().replace(b"\n", b"\r\n"))


def _multipart(subtype: str, parts: Sequence[_Part], **parameters: str) -> _Part:
    # Random, so that no content can contain it.
    boundary = f"=_{token_hex(16)}"
    fields = [mime_field("Content-Type", f"multipart/{subtype}", [*parameters.items(), ("boundary", boundary)])]
    opened, closed = f"--{boundary}\r\n".encode(), f"--{boundary}--".encode()
    return _Part(fields, b"".join([*(opened + bytes(part) + b"\r\n" for part in parts), closed]))


def _mailboxes(name: str, addresses: Sequence[Address]) -> list[str]:
    """A list of addresses, as pieces of the header `name`: no line is broken within quotes or an address."""
    pieces: list[str] = []
    for address in addresses:
        if pieces:
            pieces[-1] += ","
        shown = _display_name(name, address, 0 if pieces else len(name) + 2)
        of_one = [*shown, f" <{address.envelope}>"] if shown else [address.envelope]
        pieces += [f" {of_one[0]}", *of_one[1:]] if pieces else of_one
    return pieces


def _display_name(name: str, address: Address, indent: int) -> list[str]:
    shown = address.name
    refuse_line_breaks(name, shown, address.spec)
    if not shown.isascii() or "=?" in shown or len(shown) > _LONGEST_NAME:
        return encoded_words(shown, indent)
    if shown and not _ATOMS.fullmatch(shown):
        shown = f'"{quote(shown)}"'
    return [shown] if shown else []
