"""Received messages in one SQLite file, stored before the sender gets its answer; and mails as a person reads them.

A malformed mail is shown as far as it can be read.
"""

from __future__ import annotations

import base64
import email.policy
import json
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import EmailMessage, MIMEPart
from email.parser import BytesHeaderParser, BytesParser
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote

Kind = Literal["email", "sms"]
KINDS: Final[tuple[Kind, ...]] = ("email", "sms")

KEEP_BYTES: Final = 512 * 1024 * 1024
"""Above it the contents of the oldest messages are removed."""
_NAMED: Final = 100
"""Repeated references that are named."""
_PREVIEW: Final = 160
_SHOWN_HEADERS = ("From", "To", "Cc", "Bcc", "Reply-To", "Subject", "Date", "Message-ID", "List-Unsubscribe")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id          INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL,
    reference   TEXT NOT NULL,      -- Message-ID without its brackets, or CRQID
    received_at REAL NOT NULL,      -- seconds since 1970
    sender      TEXT NOT NULL,
    recipients  TEXT NOT NULL,      -- JSON array
    subject     TEXT NOT NULL,
    size        INTEGER NOT NULL,
    content     BLOB                -- as it came; NULL once removed to keep the file small
);
CREATE INDEX IF NOT EXISTS messages_reference ON messages (kind, reference);
"""
_COLUMNS = "id, kind, reference, received_at, sender, recipients, subject, size"


@dataclass(frozen=True, slots=True)
class Message:
    """One mail or SMS as it was received, without its content."""

    id: int
    kind: Kind
    reference: str
    received_at: float
    sender: str
    recipients: list[str]
    subject: str
    size: int


@dataclass(frozen=True, slots=True)
class Count:
    """How many were received, how many of them differ, and which references came more than once."""

    received: int
    distinct: int
    repeated: dict[str, int]


class Mailbox:
    """Mails and SMS, oldest contents removed above `KEEP_BYTES`. Calls block for some 50 µs; one thread only.

    Every `add` is one transaction without fsync: it survives `kill -9` of the process, which is what matters here.
    """

    def __init__(self, file: Path) -> None:
        """Open the file, made if missing.

        Raises:
            OSError: it cannot be opened.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise OSError(f"{file}: {error}") from error
        self._bytes = int(self._one("SELECT coalesce(sum(size), 0) FROM messages WHERE content IS NOT NULL"))

    def add(
        self, kind: Kind, *, reference: str, sender: str, recipients: Sequence[str], subject: str, content: bytes
    ) -> int:
        """Store a message and return its id.

        Raises:
            sqlite3.Error: it was not stored (the disk is full, for example).
        """
        row = (kind, reference, time.time(), sender, json.dumps(list(recipients)), subject, len(content), content)
        insert = (
            "INSERT INTO messages (kind, reference, received_at, sender, recipients, subject, size, content)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        )
        number = self._db.execute(insert, row).lastrowid
        self._bytes += len(content)
        if self._bytes > KEEP_BYTES:
            self._remove_contents()
        return number or 0

    def list(
        self,
        *,
        kind: Kind | None = None,
        reference: str | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int = 50,
    ) -> list[Message]:
        """Newest first; `before` and `after` are ids, both exclusive."""
        query = (
            f"SELECT {_COLUMNS} FROM messages WHERE (:kind IS NULL OR kind = :kind)"
            " AND (:reference IS NULL OR reference = :reference)"
            " AND id < coalesce(:before, 9e15) AND id > coalesce(:after, 0) ORDER BY id DESC LIMIT :limit"
        )
        values = {"kind": kind, "reference": reference, "before": before, "after": after, "limit": limit}
        return [_message(row) for row in self._db.execute(query, values)]

    def get(self, number: int) -> tuple[Message, bytes | None] | None:
        """One message and its content (None: removed); None when there is no such message."""
        row = self._db.execute(f"SELECT {_COLUMNS}, content FROM messages WHERE id = ?", (number,)).fetchone()
        return None if row is None else (_message(row[:-1]), row[-1])

    def beginning(self, number: int, limit: int) -> bytes:
        """The first bytes of a message's content; empty when it was removed."""
        row = self._db.execute("SELECT substr(content, 1, ?) FROM messages WHERE id = ?", (limit, number)).fetchone()
        return row[0] or b"" if row else b""

    def copies(self, message: Message) -> int:
        """How many messages of its kind carry its reference."""
        query = "SELECT count(*) FROM messages WHERE kind = ? AND reference = ?"
        return int(self._one(query, message.kind, message.reference))

    def totals(self) -> dict[str, int]:
        """How many of each kind were received."""
        rows = dict(self._db.execute("SELECT kind, count(*) FROM messages GROUP BY kind"))
        return {kind: int(rows.get(kind, 0)) for kind in KINDS}

    def count(self, kind: Kind) -> Count:
        """Count one kind."""
        received, distinct = self._db.execute(
            "SELECT count(*), count(DISTINCT reference) FROM messages WHERE kind = ?", (kind,)
        ).fetchone()
        repeated = self._db.execute(
            "SELECT reference, count(*) FROM messages WHERE kind = ? GROUP BY reference HAVING count(*) > 1 LIMIT ?",
            (kind, _NAMED),
        )
        return Count(received, distinct, dict(repeated))

    def clear(self) -> None:
        """Delete everything."""
        self._db.execute("DELETE FROM messages")
        self._bytes = 0

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _remove_contents(self) -> None:
        """Drop the contents of the oldest messages until a tenth of the room is free; their lines stay."""
        while self._bytes > KEEP_BYTES * 0.9:
            oldest = self._db.execute(
                "SELECT id, size FROM messages WHERE content IS NOT NULL ORDER BY id LIMIT 100"
            ).fetchall()
            if not oldest:
                return
            self._db.execute(
                "UPDATE messages SET content = NULL WHERE id BETWEEN ? AND ?", (oldest[0][0], oldest[-1][0])
            )
            self._bytes -= sum(size for _, size in oldest)

    def _one(self, query: str, *values: object) -> int:
        return int(self._db.execute(query, values).fetchone()[0])


def _message(row: tuple[int, Kind, str, float, str, str, str, int]) -> Message:
    number, kind, reference, received_at, sender, recipients, subject, size = row
    return Message(number, kind, reference, received_at, sender, json.loads(recipients), subject, size)


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


def read_mail(content: bytes) -> Mail:
    """Decode a whole mail."""
    message = _parse(content)
    found = headers_of(content)
    shown = {name: found[name.lower()] for name in _SHOWN_HEADERS if name.lower() in found}
    html = _part(message, "html")
    text = _part(message, "plain") or ""
    return Mail(shown, text, None if html is None else _with_images(html, message), tuple(_attachments(message)))


def headers_of(content: bytes) -> Mapping[str, str]:
    """The headers by lower-case name, decoded; of repeated ones, the last."""
    parsed = BytesHeaderParser().parsebytes(content)
    return {name.lower(): _readable(value) for name, value in parsed.raw_items()}


def preview(beginning: bytes) -> str:
    """The first words of a mail, from its first kilobytes."""
    return " ".join((_part(_parse(beginning), "plain") or "").split())[:_PREVIEW]


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


def _with_images(html: str, message: EmailMessage) -> str:
    """Html whose inline images (RFC 2392, `cid:`) stand in it as `data:`, so that nothing has to be loaded."""
    images = {
        part["Content-ID"].strip("<> "): part
        for part in message.walk()
        if part["Content-ID"] and part.get_content_maintype() == "image"
    }

    def data(found: re.Match[str]) -> str:
        part = images.get(unquote(found[2]))
        if part is None:
            return found[0]
        content = base64.b64encode(part.get_payload(decode=True)).decode()  # type: ignore[arg-type]
        return f"{found[1]}data:{part.get_content_type()};base64,{content}"

    return re.sub(r"""(\bsrc\s*=\s*["']?)cid:([^"'\s>]+)""", data, html, flags=re.IGNORECASE)


def _attachments(message: EmailMessage) -> Iterator[Attachment]:
    for number, part in enumerate(message.iter_attachments(), 1):
        payload = part.get_payload(decode=True)
        content = payload if isinstance(payload, bytes) else part.as_bytes()
        yield Attachment(part.get_filename() or f"attachment-{number}", part.get_content_type(), content)
