"""A mail's bytes as a person reads them: text, html, attachments. Malformed mails read as well as they can."""

from __future__ import annotations

import email.policy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import EmailMessage, MIMEPart
from email.parser import BytesHeaderParser, BytesParser
from typing import Any

_SHOWN_HEADERS = ("From", "To", "Cc", "Bcc", "Reply-To", "Subject", "Date", "Message-ID", "List-Unsubscribe")


@dataclass(frozen=True, slots=True)
class Attachment:
    """One attachment; `size` in bytes, decoded."""

    name: str
    type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail, decoded."""

    headers: dict[str, str]
    text: str
    html: str | None
    attachments: tuple[Attachment, ...]


def read(content: bytes) -> Mail:
    """Decode a whole mail."""
    message = _parse(content)
    found = headers(content)
    shown = {name: found[name.lower()] for name in _SHOWN_HEADERS if name.lower() in found}
    return Mail(shown, _part(message, "plain") or "", _part(message, "html"), tuple(_attachments(message)))


def headers(content: bytes) -> Mapping[str, str]:
    """The headers by lower-case name, decoded; of those that stand several times the last."""
    parsed = BytesHeaderParser().parsebytes(content)
    return {name.lower(): _readable(value) for name, value in parsed.raw_items()}


def preview(beginning: bytes, limit: int = 160) -> str:
    """The first words of a mail, from its first kilobytes."""
    return " ".join((_part(_parse(beginning), "plain") or "").split())[:limit]


def _readable(raw: str) -> str:
    """A header's text, unfolded, its raw UTF-8 (RFC 6532) and encoded words (RFC 2047) decoded."""
    text = raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    text = re.sub(r"\r?\n(?=[ \t])", "", text).strip()
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, UnicodeError, LookupError, ValueError):
        return text


def _parse(content: bytes) -> EmailMessage:
    return BytesParser(_class=EmailMessage, policy=email.policy.default).parsebytes(content)


def _part(message: EmailMessage, subtype: str) -> str | None:
    part = message.get_body(preferencelist=(subtype,))
    if part is None:
        return None
    return _text(part)


def _text(part: MIMEPart[Any, Any]) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        return payload.decode(part.get_content_charset("utf-8"), errors="replace")
    except LookupError:  # a charset nobody knows
        return payload.decode("utf-8", errors="replace")


def _attachments(message: EmailMessage) -> Iterator[Attachment]:
    for number, part in enumerate(message.iter_attachments(), 1):
        payload = part.get_payload(decode=True)
        content = payload if isinstance(payload, bytes) else part.as_bytes()
        yield Attachment(part.get_filename() or f"attachment-{number}", part.get_content_type(), content)
