"""How much one JSON text may hold, counted over its bytes before anything is built of them.

Bytes alone are no bound: 29 MiB of `[[],[],…]` are 800 MiB of lists. So the depth and the number of values are bounded,
too, by one rule for everybody who reads a task: ingest, the router, whoever replays a dead letter, and the worker. What
one of them takes, none of the others refuses.

The count costs a microsecond where a text is small or plain, and some 10 ms a MiB where it is crowded.
"""

from __future__ import annotations

import json
from itertools import accumulate
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


class OutOfBounds(ValueError):
    """The text is not taken; the message is a sentence that quotes nothing of it."""


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
        OutOfBounds: it is nested more than `depth` deep.
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
            raise OutOfBounds("it holds a lone surrogate, \\ud800 to \\udfff without its other half") from None


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
        raise OutOfBounds(f"it is nested more than {depth} deep")
    return values


_TOO_MANY: Final = f"it holds more than {MAX_VALUES:,} values"
