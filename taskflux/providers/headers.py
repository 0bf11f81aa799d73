"""Header fields of a mail: their validation and their encoding. Pure.

It is used instead of the `email` package, which decodes encoded words in what it is given (a line break
within one becomes a header of its own, CVE-2024-6923), encodes structured fields, and folds a long word so that the
first line is empty.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from email.errors import HeaderParseError
from email.header import decode_header
from email.utils import quote as escaped
from enum import Enum
from typing import Final
from urllib.parse import quote

LONGEST_LINE: Final = 998
"""Octets of a line, without its end (RFC 5322, 2.1.1)."""

LONGEST_VALUE: Final = 32 * LONGEST_LINE
"""Characters of a value: many lines, and less than servers accept for one header (Postfix: 102,400 bytes)."""

_WIDTH: Final = 76
_LONGEST_WORD: Final = 75
_LONGEST_IN_SUBJECT: Final = LONGEST_LINE - len("Subject: ")
_FRAME: Final = len("=?utf-8?q??=")

_FORBIDDEN: Final = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_NAME: Final = re.compile("[!-9;-~]+")
_PIECE: Final = re.compile(" *[^ ]+")
_BETWEEN_BRACKETS: Final = re.compile("(?<=>)(?=<)|(?<=>,)(?=<)")
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]+")
_ENCODED: Final = re.compile(r"=\?[^?]*\?[bBqQ]\?")
_WHOLE_WORD: Final = re.compile(r"=\?[^?]*\?[bBqQ]\?.*?\?=")
# An escaped mark outside a quoted string does not begin one: else the text is searched again from each such mark.
_QUOTED_STRING: Final = re.compile(r'\\["\\]|"(?P<quoted>(?:\\.|[^"\\])*)"')
# Not ' * and %, which RFC 2045 allows: readers treat them as RFC 2231's, and lose the file name `ann's.pdf`.
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$&+.^_`{|}~-]+")
_ATTRIBUTE_CHARS: Final = "!#$&+-.^_`|~"
_SEGMENTS: Final = re.compile(
    r"(?P<address><[^<>]*>)|(?P<comment>\([^()]*\))|(?P<separator>[,;:])"
    r'|(?P<phrase>(?:"(?:\\.|[^"\\])*"|\\["\\]|[^"<(,;:])+|.)'
)


class WrongHeader(ValueError):
    """A value that a header cannot have; the sentence names the header and does not quote the value."""


class Kind(Enum):
    """How a field represents characters beyond ASCII."""

    TEXT = "text"  # unstructured: the whole value in encoded words (RFC 2047)
    PHRASES = "phrases"  # names in encoded words, never what is between < and >
    URLS = "urls"  # percent-encoded (RFC 3987, 3.1)
    TOKENS = "tokens"  # in comments only


_TOKENS: Final = frozenset({
    "references", "in-reply-to", "message-id", "original-message-id", "supersedes", "obsoletes", "auto-submitted",
    "precedence", "priority", "importance", "sensitivity", "x-priority", "x-msmail-priority", "autocrypt",
    "x-auto-response-suppress", "expires", "expiry-date", "reply-by", "deferred-delivery", "latest-delivery-time",
    "original-recipient", "accept-language", "dkim-signature", "authentication-results", "received-spf", "feedback-id",
    "require-recipient-valid-since", "tls-required", "bimi-selector",
})  # fmt: skip
_PHRASES: Final = frozenset({
    "list-id", "keywords", "disposition-notification-to", "return-receipt-to", "errors-to", "mail-followup-to",
    "mail-reply-to", "x-confirm-reading-to",
})  # fmt: skip


def kind_of(name: str) -> Kind:
    """The kind of a field, by IANA's registry and common use; unknown fields are text."""
    name = name.lower()
    if name in _PHRASES:
        return Kind.PHRASES
    if name in _TOKENS or name.startswith("arc-"):
        return Kind.TOKENS
    return Kind.URLS if name.startswith("list-") or name == "archived-at" else Kind.TEXT


def field(name: str, value: str) -> str:
    """`Name: value`, folded, without the line end.

    ASCII stays as it is, however many spaces it contains; only text that looks like encoded words is encoded.

    Raises:
        WrongHeader: a header cannot have this value; the sentence names the header.
    """
    refuse_line_breaks(name, value)
    kind = kind_of(name)
    if name != "Subject":
        value = value.strip(" ")  # programs read it, and do not expect `=?utf-8?q?welcome_?=`
    if kind is Kind.TEXT:
        plain = value.isascii() and value == value.strip(" ") and not _ENCODED.search(value)
        if not plain or (name == "Subject" and len(max(value.split(" "), key=len)) > _LONGEST_IN_SUBJECT):
            return folded(name, encoded_words(value, len(name) + 2))
    else:
        value = _structured(name, value, kind)
    return folded(name, _pieces(name, value, kind))


def refuse_line_breaks(name: str, *texts: str) -> None:
    """Refuse line breaks in the field `name`, which could begin another one.

    Raises:
        WrongHeader: a header cannot have the name, or one of the `texts`.
    """
    if not _NAME.fullmatch(name) or any(map(_FORBIDDEN.search, texts)):
        raise WrongHeader(f"{name} has a line break or another character that a header cannot have")


def _pieces(name: str, value: str, kind: Kind) -> Iterator[str]:
    """The value in pieces between which a line may be broken. A piece too long for a line is split further."""
    for piece in _PIECE.findall(value):
        if kind is Kind.TEXT or len(piece) <= LONGEST_LINE - len(name) - 2:
            yield piece
            continue
        first, *others = _BETWEEN_BRACKETS.split(piece.lstrip(" "))
        yield f" {first}" if piece.startswith(" ") else first
        yield from (f" {each}" for each in others)


def folded(name: str, pieces: Iterable[str]) -> str:
    """The field with its lines broken before some of the `pieces`, each of which, but the first, begins with a space.

    The first is always on the line of the name: many mail programs take an empty first line for an empty field.

    Raises:
        WrongHeader: a piece is longer than a line may be.
    """
    lines = [f"{name}: "]
    for number, piece in enumerate(pieces):
        if number and len(lines[-1]) + len(piece) > _WIDTH:
            lines.append(piece)
        else:
            lines[-1] += piece
    if any(len(line.encode()) > LONGEST_LINE for line in lines):
        raise WrongHeader(f"{name} has a word that is too long for a header line ({LONGEST_LINE} characters)")
    return "\r\n".join(lines)


def encoded_words(text: str, indent: int = 0) -> list[str]:
    """`text` in encoded words (RFC 2047), as pieces of a line that has `indent` characters already."""
    quoted = [_quoted(char) for char in text]
    octets = len(text.encode())
    as_text = sum(map(len, quoted)) <= _base64_length(octets)
    room = max(_WIDTH - indent - _FRAME, _base64_length(4))
    words: list[str] = []
    start = held = 0
    for at, char in enumerate(text):
        more = len(quoted[at]) if as_text else len(char.encode())
        if at > start and (held + more if as_text else _base64_length(held + more)) > room:
            words.append(_encoded_word(text[start:at], as_text=as_text))
            start, held, room = at, 0, _LONGEST_WORD - _FRAME
        held += more
    if text:
        words.append(_encoded_word(text[start:], as_text=as_text))
    return [*words[:1], *(f" {word}" for word in words[1:])]


def _encoded_word(text: str, *, as_text: bool) -> str:
    if as_text:
        return f"=?utf-8?q?{''.join(map(_quoted, text))}?="
    return f"=?utf-8?b?{b64encode(text.encode()).decode('ascii')}?="


def _quoted(char: str) -> str:
    # The few characters that need no encoding, wherever an encoded word may be (RFC 2047, 5, (3)).
    if (char.isascii() and char.isalnum()) or char in "!*+-/":
        return char
    return "_" if char == " " else "".join(f"={octet:02X}" for octet in char.encode())


def _base64_length(octets: int) -> int:
    return (octets + 2) // 3 * 4


def _structured(name: str, value: str, kind: Kind) -> str:
    """The value of a structured field, all of it in ASCII: no encoded words but where RFC 2047, 5 allows them."""
    for word in _WHOLE_WORD.findall(value):
        if _CONTROL.search(_decoded(word)):
            raise WrongHeader(f"{name} has an encoded word with a line break or another control character")
    if value.isascii():
        return value
    return "".join(_segment(name, found, kind) for found in _SEGMENTS.finditer(value))


def _segment(name: str, found: re.Match[str], kind: Kind) -> str:
    text = found[0]
    if text.isascii():
        return text
    if found.lastgroup == "comment":
        return f"({''.join(encoded_words(text[1:-1], len(name) + 3))})"
    if kind is Kind.URLS:
        return _BEYOND_ASCII.sub(lambda beyond: quote(beyond[0]), text)
    if kind is Kind.TOKENS or found.lastgroup != "phrase":
        raise WrongHeader(f"{name} has characters beyond ASCII where this header cannot have them")
    phrase = _QUOTED_STRING.sub(_unquoted, text.strip(" "))
    words = "".join(encoded_words(phrase, len(name) + 2 if found.start() == 0 else 0))
    before, after = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return " " * before + words + " " * after


def _unquoted(found: re.Match[str]) -> str:
    return found[0] if found["quoted"] is None else re.sub(r"\\(.)", r"\1", found["quoted"])


def _decoded(word: str) -> bytes:
    try:
        return b"".join(part.encode() if isinstance(part, str) else part for part, _ in decode_header(word))
    except (HeaderParseError, ValueError):
        return b""  # mail programs cannot decode it either


def _parameter(header: str, name: str, value: str) -> list[str]:
    """A parameter as pieces: plain, quoted, or by RFC 2231 beyond ASCII."""
    refuse_line_breaks(header, value)
    if _TOKEN.fullmatch(value) and "=?" not in value:
        return [f" {name}={value}"]
    if value.isascii() and "=?" not in value:
        return [f' {name}="{escaped(value)}"']
    encoded = [quote(char, safe=_ATTRIBUTE_CHARS) for char in value]
    whole = f" {name}*=utf-8''{''.join(encoded)}"
    if len(whole) < _WIDTH:
        return [whole]
    pieces = [f" {name}*0*=utf-8''"]
    for each in encoded:
        if len(pieces[-1]) + len(each) > _WIDTH - 1:
            pieces[-1] += ";"
            pieces.append(f" {name}*{len(pieces)}*=")
        pieces[-1] += each
    return pieces


def mime_field(name: str, value: str, parameters: Iterable[tuple[str, str]]) -> str:
    """`Name: value; parameter=…; …`, folded, without the line end.

    Raises:
        WrongHeader: a header cannot have this parameter.
    """
    pieces = [value]
    for attribute, text in parameters:
        pieces[-1] += ";"
        pieces += _parameter(name, attribute, text)
    return folded(name, pieces)
