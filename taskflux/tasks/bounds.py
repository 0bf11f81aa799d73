"""Limits of one JSON text, checked on its bytes before it is parsed.

A limit on bytes is not enough: 29 MiB of `[[],[],…]` become 800 MiB of lists. So depth and number of values are limited
too, by one rule wherever a task is read: ingest, the router, a replay of a dead letter, and the worker. What one of
them accepts, none of the others refuses.

The check takes a microsecond for a small or plain text, and about 10 ms per MiB for a dense one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import accumulate, takewhile
from typing import Final

MAX_DEPTH: Final = 64
"""Levels of nested arrays and objects."""

MAX_VALUES: Final = 100_000
"""Values of a task: its arrays, its objects, and everything in them."""

USUAL_BYTES: Final = 1024 * 1024
"""Limit of a payload whose type declares none: in bytes of its JSON text as stored, compact and in ASCII."""

MOST_BYTES: Final = 16 * 1024 * 1024
"""The largest limit that a type may declare."""

VALUE_BYTES: Final = 200
"""Bytes of memory that a parsed value takes on average, at most: an object in an object, with a name."""

FEW: Final = 1000
"""Up to this number of values, an upper bound is enough."""

LARGE: Final = 256 * 1024
"""Texts of at least this many bytes are parsed in a thread."""


ESCAPE: Final = rb"\u"
"""The beginning of a character's numeric escape in JSON."""


Path = tuple[str | int, ...]
"""Names and indexes, from the outermost value inwards."""


UTF_8_BOM: Final = b"\xef\xbb\xbf"
"""May precede a JSON text, and is skipped (RFC 8259, section 8.1)."""


def is_utf_16(text: bytes) -> bool:
    """Whether a text that should be JSON in UTF-8 begins like UTF-16, with or without a byte order mark."""
    return text.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(text) > 1 and (text[0] == 0) != (text[1] == 0))


class OutOfBounds(ValueError):
    """The text is refused; the message is a sentence that does not quote it.

    `path` leads to the fault, as far as it is known; its names are valid Unicode.
    """

    def __init__(self, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.path = path


class TooDeep(OutOfBounds):
    """Its arrays and objects are nested too deeply."""


class TooManyValues(OutOfBounds):
    """There are more than `MAX_VALUES`."""


_SPACE: Final = b" \t\r\n"
_BRACKETS: Final = b"[{]}"
_OTHERS: Final = bytes(set(range(256)) - set(_BRACKETS))
_STEPS: Final = bytes.maketrans(_BRACKETS, b"\x01\x01\xff\xff")


def check(text: bytes, *, depth: int = MAX_DEPTH) -> int:
    """An upper bound on the number of values in a JSON text.

    It does not check that the text is valid JSON: of an invalid one, the values before the fault are counted.

    Raises:
        TooDeep: it is nested more than `depth` deep.
        TooManyValues: it holds more than `MAX_VALUES`.
    """
    opened = text.count(b"[") + text.count(b"{")
    values = 1 + opened + text.count(b",")
    if opened > depth or values > FEW:  # commas and brackets inside strings were counted, too
        return _count(text, depth)
    return values


def check_characters(text: bytes, document: object) -> None:
    """Look for lone surrogates in a parsed JSON text: they are not characters.

    Only a text with an `ESCAPE` needs this check: valid UTF-8 contains surrogates only as escapes.

    Raises:
        OutOfBounds: there is one.
    """
    if rb"\ud" in text or rb"\uD" in text:
        try:
            _plain(document).encode()
        except UnicodeEncodeError:
            message = "it holds a lone surrogate, \\ud800 to \\udfff without its other half"
            raise OutOfBounds(message, _first_lone(document)) from None


_plain: Final = json.JSONEncoder(ensure_ascii=False).encode


def excess(size: int, limit: int) -> str:
    """The error of a payload of `size` bytes whose type allows only `limit`."""
    return f"the payload has {size:,} bytes as it is stored, and its task type allows {limit:,} at most"


def _count(text: bytes, depth: int) -> int:
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 4 * MAX_VALUES:  # two for each string: a value, and its name
        raise TooManyValues(_TOO_MANY)
    outside = b'"'.join(unescaped.split(b'"')[::2]).translate(None, _SPACE)
    opened = outside.count(b"[") + outside.count(b"{")
    values = 1 + opened + outside.count(b",") - outside.count(b"[]") - outside.count(b"{}")
    if values > MAX_VALUES:
        raise TooManyValues(_TOO_MANY)
    # After so many brackets, one has closed nothing: no parser gets that far.
    steps = outside.translate(_STEPS, _OTHERS)[: 2 * opened + 1]
    if opened > depth and max(accumulate(memoryview(steps).cast("b"))) > depth:
        raise TooDeep(f"it is nested more than {depth} deep", _deep_member(text, depth))
    return values


LOOKED_THROUGH: Final = 256 * 1024
"""Bytes of a text that are searched for the name of the field that is nested too deeply."""

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[\]{},:]', re.DOTALL)


def _deep_member(text: bytes, depth: int) -> Path:
    """The names that lead to the value nested more than `depth` levels deep, three at most."""
    path = list[str | int]()  # for each open bracket, the current name or index in it
    last = b""
    for found in _TOKEN.finditer(text[:LOOKED_THROUGH]):
        token = found[0]
        match token:
            case b"[" | b"{":
                path.append(0 if token == b"[" else "")
                if len(path) > depth:
                    break
            case b"]" | b"}" if path:
                path.pop()
            case b"," if path and isinstance(path[-1], int):
                path[-1] += 1
            case b":" if path and isinstance(path[-1], str):
                path[-1] = _name(last)
            case _:
                last = token
    return tuple(takewhile(lambda part: isinstance(part, str) and part, path[:3]))


def _name(token: bytes) -> str:
    try:
        return _unicode(json.loads(token))
    except ValueError:
        return token[1:-1].decode("utf-8", "replace")


def _unicode(text: str) -> str:
    """A text with a replacement character for each lone surrogate."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _first_lone(document: object) -> Path:
    """The path of the first text or name that holds a lone surrogate."""
    for path, text in _texts(document, ()):
        if _unicode(text) != text:
            return path
    return ()


def _texts(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    match value:
        case str():
            yield path, value
        case list():
            for place, each in enumerate(value):
                yield from _texts(each, (*path, place))
        case dict():
            for name, each in value.items():
                inner = (*path, _unicode(name))
                yield inner, name
                yield from _texts(each, inner)


_TOO_MANY: Final = f"it holds more than {MAX_VALUES:,} values"
