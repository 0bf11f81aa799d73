"""The bytes of a mail for an SMTP server, and the plain text of one that has only html. No I/O."""

from __future__ import annotations

import re
from base64 import encodebytes
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, quote
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal

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
from taskflux.tasks.errors import InvalidPayload

if TYPE_CHECKING:
    from justhtml import NodeType


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


MOST_HTML: Final = 500_000
"""Characters of html up to which it is converted, which takes about two seconds of one core."""

_PARAGRAPHS: Final = frozenset({
    "address", "article", "aside", "blockquote", "dl", "fieldset", "figure", "footer", "form", "h1", "h2", "h3", "h4",
    "h5", "h6", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "table", "ul",
})  # fmt: skip
_LINES: Final = frozenset({
    "caption", "center", "dd", "details", "div", "dt", "figcaption", "legend", "li", "option", "summary", "tr",
})  # fmt: skip
_UNSEEN: Final = frozenset({
    "audio", "canvas", "embed", "head", "iframe", "math", "object", "script", "style", "svg", "template", "title",
    "video",
})  # fmt: skip
_LISTS: Final = frozenset({"ol", "ul"})
_DEEPEST: Final = 8
"""Nesting depth up to which lists are indented further."""
_TARGETS: Final = ("http://", "https://", "mailto:", "tel:")

# Marks in the text until it is split into lines; those of the html itself are removed before.
_CELL: Final = "\x1f"
_PARAGRAPH: Final = "\x1e"
_LINE: Final = "\x1d"
_BULLET: Final = "\x1c"
_KEPT_SPACE: Final = "\xa0"
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")
_AFTER_BULLET: Final = re.compile(rf"{_BULLET}[{_LINE}{_PARAGRAPH}\s]*")
_BLANK_LINES: Final = re.compile(r"\n{3,}")
_SPACES: Final = re.compile(r"[ \t\n\f\r]+")
_NUMBER: Final = re.compile("-?[0-9]{1,9}")


def plain_text(html: str) -> str:
    """The visible text, as lines; empty if there is none, or if the html is longer than `MOST_HTML`."""
    if len(html) > MOST_HTML:
        return ""
    from justhtml import JustHTML

    # Nothing is displayed or executed, so no sanitizing is needed.
    return _cut(_Reading().all(JustHTML(html, sanitize=False, scripting_enabled=False).root))


@dataclass(frozen=True, slots=True)
class _End:
    """The end of an element whose text begins at the part `start`."""

    element: Any
    start: int


class _Reading:
    """A walk over the tree in document order, without recursion, so that deep html is safe."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._numbers: defaultdict[int, int] = defaultdict(int)
        self._lists = 0
        self._preformatted = 0

    def all(self, root: NodeType) -> str:
        """The text below `root`, with marks where lines, paragraphs and cells end."""
        waiting: list[NodeType | _End] = [root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, _End):
                self._end(node)
            elif node.name == "#text":
                self._text(str(node.data))
            elif not _hidden(node):
                self._begin(node)
                waiting.append(_End(node, len(self._parts)))
                waiting.extend(reversed(node.children or ()))
        return "".join(self._parts)

    def _text(self, text: str) -> None:
        text = _CONTROLS.sub("", text)
        if self._preformatted:
            self._parts.append(text.replace("\r\n", "\n").replace("\t", _KEPT_SPACE * 4).replace(" ", _KEPT_SPACE))
        else:
            self._parts.append(_SPACES.sub(" ", text))

    def _begin(self, element: Any) -> None:
        name = element.name
        self._parts.append(_PARAGRAPH if name in _PARAGRAPHS else _LINE if name in _LINES else "")
        if name == "br":
            self._parts.append("\n")
        elif name in _LISTS:
            self._lists += 1
            self._numbers[id(element)] = _number(element.attrs.get("start"), 1) - 1
        elif name == "li":
            self._parts.append(self._bullet(element))
        elif name == "img" and (alt := (element.attrs.get("alt") or "").strip()):
            self._text(f"[{alt}]")
        elif name == "pre":
            self._preformatted += 1

    def _end(self, end: _End) -> None:
        name = end.element.name
        if name == "a":
            self._parts.append(_target(end.element.attrs.get("href"), "".join(self._parts[end.start :])))
        elif name == "pre":
            self._preformatted -= 1
        elif name in _LISTS:
            self._lists -= 1
        if name in ("td", "th"):
            self._parts.append(_CELL)
        elif name in _PARAGRAPHS:
            self._parts.append(_PARAGRAPH)
        elif name in _LINES:
            self._parts.append(_LINE)

    def _bullet(self, item: Any) -> str:
        of = item.parent
        indent = _KEPT_SPACE * 2 * min(max(self._lists - 1, 0), _DEEPEST)
        if of is None or of.name != "ol":
            return f"{indent}* {_BULLET}"
        number = _number(item.attrs.get("value"), self._numbers[id(of)] + 1)
        self._numbers[id(of)] = number
        return f"{indent}{number}. {_BULLET}"


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and _NUMBER.fullmatch(text.strip()) else otherwise


def _hidden(element: Any) -> bool:
    if element.name in _UNSEEN or element.name.startswith(("#comment", "!")):
        return True
    attributes = element.attrs or {}
    return "hidden" in attributes or "display:none" in "".join((attributes.get("style") or "").split()).lower()


def _target(href: str | None, shown: str) -> str:
    """The target of a link, unless its text is the target."""
    href = _CONTROLS.sub("", "".join((href or "").split()))
    if not href.lower().startswith(_TARGETS):
        return ""
    short = href.removeprefix("mailto:").removeprefix("tel:").rstrip("/")
    return "" if short in shown else f" <{href}>"


def _cut(text: str) -> str:
    """Lines without spaces at their ends, at most one blank line between them, a bar between the cells of a row."""
    text = _AFTER_BULLET.sub("", text)
    paragraphs = ("\n".join(filter(None, map(_line, each.split(_LINE)))) for each in text.split(_PARAGRAPH))
    return _BLANK_LINES.sub("\n\n", "\n\n".join(filter(None, paragraphs)))


def _line(text: str) -> str:
    """The text between two blocks: one line, or more with br or pre."""
    lines = []
    for line in text.split("\n"):
        cells = (_SPACES.sub(" ", cell).strip(" ") for cell in line.split(_CELL))
        lines.append(" | ".join(filter(None, cells)).replace(_KEPT_SPACE, " ").rstrip())
    return "\n".join(lines).strip("\n")
