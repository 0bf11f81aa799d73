"""How much one JSON text may hold, counted over its bytes before anything is built of them.

Bytes alone are no bound: 29 MiB of `[[],[],…]` are 800 MiB of lists. So the depth and the number of values are bounded,
too, by one rule for everybody who reads a task: ingest, the router, whoever replays a dead letter, and the worker. What
one of them takes, none of the others refuses.

The count costs a microsecond where a text is small or plain, and some 10 ms a MiB where it is crowded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import accumulate, takewhile
from typing import Final

MAX_DEPTH: Final = 64
"""Arrays and objects within each other."""

MAX_VALUES: Final = 100_000
"""Values of a task: its arrays, its objects, and what stands in them."""

USUAL_BYTES: Final = 1024 * 1024
"""Bytes of a payload where its type declares no other limit: of its JSON text as it is stored, compact and in ASCII."""

MOST_BYTES: Final = 16 * 1024 * 1024
"""The largest limit that a type may declare."""

VALUE_BYTES: Final = 200
"""What a value takes in memory once it is parsed: on average at most, an object in an object, with a name."""

FEW: Final = 1000
"""Values up to which a text is not counted exactly."""

LARGE: Final = 256 * 1024
"""Bytes from which on a text is parsed beside the event loop."""


ESCAPE: Final = rb"\u"
"""How a character begins that stands in a JSON text by its number."""


Path = tuple[str | int, ...]
"""Names and indexes, from the outermost value inwards."""


UTF_8_BOM: Final = b"\xef\xbb\xbf"
"""May stand before a JSON text, and is skipped (RFC 8259, section 8.1)."""


def is_utf_16(text: bytes) -> bool:
    """Whether what should be a JSON text in UTF-8 begins as one in UTF-16 does, with its byte order mark or without."""
    return text.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(text) > 1 and (text[0] == 0) != (text[1] == 0))


class OutOfBounds(ValueError):
    """The text is refused; the message is a sentence that does not quote it.

    `path` leads to the fault, as far as it is known; its names are valid Unicode.
    """

    def __init__(self, said: str, path: Path = ()) -> None:
        super().__init__(said)
        self.path = path


class TooDeep(OutOfBounds):
    """Its arrays and objects are nested more deeply than they may be."""


class TooManyValues(OutOfBounds):
    """There are more than `MAX_VALUES`."""


_SPACE: Final = b" \t\r\n"
_BRACKETS: Final = b"[{]}"
_OTHERS: Final = bytes(set(range(256)) - set(_BRACKETS))
_STEPS: Final = bytes.maketrans(_BRACKETS, b"\x01\x01\xff\xff")


def check(text: bytes, *, depth: int = MAX_DEPTH) -> int:
    """How many values stand in a JSON text, at most.

    Whether it is JSON is for its parser to say: of a text that is none, what stands before its fault is counted.

    Raises:
        TooDeep: it is nested more than `depth` deep.
        TooManyValues: it holds more than `MAX_VALUES`.
    """
    opened = text.count(b"[") + text.count(b"{")
    values = 1 + opened + text.count(b",")
    if opened > depth or values > FEW:  # commas and brackets of strings were counted, too
        return _count(text, depth)
    return values


def check_characters(text: bytes, document: object) -> None:
    """Look for halves of surrogate pairs in what a JSON text was parsed to: they are no characters.

    Only a text that holds `ESCAPE` has to be looked through: bytes that are UTF-8 hold none but by an escape.

    Raises:
        OutOfBounds: there is one.
    """
    if rb"\ud" in text or rb"\uD" in text:
        try:
            _plain(document).encode()
        except UnicodeEncodeError:
            said = "it holds a lone surrogate, \\ud800 to \\udfff without its other half"
            raise OutOfBounds(said, _first_lone(document)) from None


_plain: Final = json.JSONEncoder(ensure_ascii=False).encode


def excess(size: int, limit: int) -> str:
    """What is wrong with a payload of `size` bytes where its type takes only `limit`."""
    return f"the payload has {size:,} bytes as it is stored, and a task of its type {limit:,} at most"


def _count(text: bytes, depth: int) -> int:
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 4 * MAX_VALUES:  # two a string, and a value has a name at most
        raise TooManyValues(_TOO_MANY)
    outside = b'"'.join(unescaped.split(b'"')[::2]).translate(None, _SPACE)
    opened = outside.count(b"[") + outside.count(b"{")
    values = 1 + opened + outside.count(b",") - outside.count(b"[]") - outside.count(b"{}")
    if values > MAX_VALUES:
        raise TooManyValues(_TOO_MANY)
    # Whatever follows so many brackets follows one that closes nothing: no parser gets there.
    steps = outside.translate(_STEPS, _OTHERS)[: 2 * opened + 1]
    if opened > depth and max(accumulate(memoryview(steps).cast("b"))) > depth:
        raise TooDeep(f"it is nested more than {depth} deep", _deep_member(text, depth))
    return values


LOOKED_THROUGH: Final = 256 * 1024
"""Bytes of a text that are searched for the name of a field nested too deeply."""

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
