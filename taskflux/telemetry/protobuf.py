"""Protobuf's wire format, as far as spans need it: https://protobuf.dev/programming-guides/encoding/.

For what is written thousands of times a second: a message that is made of Python objects first takes several times as
long.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final


class Wire(IntEnum):
    """How the value of a field is written."""

    VARINT = 0
    FIXED64 = 1
    LENGTHY = 2


def varint(value: int) -> bytes:
    """An integer, a bool, a length.

    Raises:
        ValueError: it is no int64.
    """
    if not -(2**63) <= value < 2**63:
        raise ValueError("an integer of more than 64 bits")
    rest, written = value & (2**64 - 1), bytearray()
    while rest > 0x7F:
        written.append(rest & 0x7F | 0x80)
        rest >>= 7
    written.append(rest)
    return bytes(written)


def tag(number: int, wire: Wire) -> bytes:
    """What stands before the value of a field."""
    return varint(number << 3 | wire)


_SIZES: Final = tuple(varint(size) for size in range(1024))


def lengthy(number: int) -> Callable[[bytes], bytes]:
    """What writes a field whose value is a message, a string or bytes."""
    before = tag(number, Wire.LENGTHY)

    def write(content: bytes) -> bytes:
        size = len(content)
        return before + (_SIZES[size] if size < len(_SIZES) else varint(size)) + content

    return write
