"""Splits the body of a batch, as it arrives, into the bytes of each item."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from enum import Enum, auto
from typing import Final, Protocol

from taskflux.tasks.bounds import UTF_8_BOM, is_utf_16

Item = bytes | None
"""The bytes of one item; None for one that was too large, and was not kept."""


class MalformedBatch(Exception):
    """From here on, it is unknown where items begin and end; the text is a sentence for the submitter."""


class Splitter(Protocol):
    """Takes the parts of a body and yields its items in order."""

    def feed(self, data: bytes) -> Iterator[Item]:
        """The items that `data` completes; raises MalformedBatch after the last whole one."""
        ...

    def end(self) -> Iterator[Item]:
        """The items left at the end of the body; raises MalformedBatch if the body is incomplete."""
        ...


class LineSplitter:
    """NDJSON: one item per line. Blank lines and a byte order mark are ignored; the last line needs no line feed."""

    def __init__(self, longest: int) -> None:
        self._item = _Collected(longest)

    def feed(self, data: bytes) -> Iterator[Item]:
        *whole, rest = data.split(b"\n")
        for part in whole:
            yield from self._line(part)
        self._item.add(rest)

    def end(self) -> Iterator[Item]:
        yield from self._line(b"")

    def _line(self, part: bytes) -> Iterator[Item]:
        line = self._item.finish(part)
        if line is None or line.removeprefix(UTF_8_BOM).strip():
            yield line


class _Place(Enum):
    BEFORE = auto()
    FIRST = auto()  # after the opening bracket: an item, or the end
    NEXT = auto()  # after a comma: an item
    AFTER = auto()


_TOP: Final = re.compile(rb'[\[\]{}",]')
_NESTED: Final = re.compile(rb'[\[\]{}"]')
_REST_OF_TEXT: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SPACE: Final = b" \t\r\n"


class ArraySplitter:
    """A JSON array, cut at the commas of its outermost level.

    It looks only at brackets, quotes and escapes. Whether an item is JSON shows when it is parsed, so that a bad
    item between two commas does not affect the others.
    """

    def __init__(self, longest: int) -> None:
        self._item = _Collected(longest)
        self._place = _Place.BEFORE
        self._depth = 0
        self._in_text = False
        self._escaped = False  # the previous part ended in the middle of an escape
        self._seen = 0

    def feed(self, data: bytes) -> Iterator[Item]:
        at = 0
        if self._place is _Place.BEFORE:
            at = self._open(data)
        if self._place in (_Place.FIRST, _Place.NEXT):
            at = yield from self._items(data, at)
        if self._place is _Place.AFTER and data[at:].strip(_SPACE):
            raise MalformedBatch("something follows the end of the array")
        self._seen += len(data)

    def end(self) -> Iterator[Item]:
        if self._place is _Place.BEFORE:
            raise MalformedBatch("the body is empty; a batch is a JSON array of tasks")
        if self._place is not _Place.AFTER:
            raise MalformedBatch("the body ends before the array does")
        return iter(())

    def _open(self, data: bytes) -> int:
        head = data.lstrip(_SPACE + UTF_8_BOM)
        if not head:
            return len(data)
        if is_utf_16(head):
            raise MalformedBatch("the body is UTF-16, but JSON must be UTF-8 (RFC 8259, section 8.1)")
        if not head.startswith(b"["):
            raise MalformedBatch("a batch is a JSON array of tasks; this body does not begin with [")
        self._place = _Place.FIRST
        return len(data) - len(head) + 1

    def _items(self, data: bytes, at: int) -> Generator[Item, None, int]:
        """Yields what is complete and returns where the array ends, or the end of `data`."""
        start = at
        while True:
            if self._in_text:
                at = self._leave_text(data, at)
            found = (_NESTED if self._depth else _TOP).search(data, at) if at < len(data) else None
            if found is None:
                self._item.add(data[start:])
                return len(data)
            at = found.end()
            match found[0]:
                case b'"':
                    self._in_text = True
                case b"[" | b"{":
                    self._depth += 1
                case b"]" | b"}" if self._depth:
                    self._depth -= 1
                case b"}":
                    raise MalformedBatch(f"a }} at byte {self._seen + at} has no matching {{")
                case b",":
                    yield self._item.finish(data[start : at - 1])
                    self._place, start = _Place.NEXT, at
                case _:
                    last = self._item.finish(data[start : at - 1])
                    if self._place is _Place.NEXT or last is None or last.strip(_SPACE):
                        yield last
                    self._place = _Place.AFTER
                    return at

    def _leave_text(self, data: bytes, at: int) -> int:
        """The position after the current text, or the end of `data` if the text continues."""
        if self._escaped and at < len(data):
            self._escaped = False
            at += 1
        found = _REST_OF_TEXT.match(data, at)
        if found is not None:
            self._in_text = False
            return found.end()
        rest = data[at:]
        backslashes = len(rest) - len(rest.rstrip(b"\\"))
        self._escaped = self._escaped or backslashes % 2 == 1
        return len(data)


class _Collected:
    """An item that arrives in parts."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._parts = bytearray()
        self._too_long = False

    def add(self, part: bytes) -> None:
        if self._too_long or len(self._parts) + len(part) > self._longest:
            self._too_long = True
            self._parts.clear()
        else:
            self._parts += part

    def finish(self, part: bytes) -> Item:
        """The item, of which this is the last part; then start the next one."""
        if not self._parts and not self._too_long and len(part) <= self._longest:
            return part
        self.add(part)
        item = None if self._too_long else bytes(self._parts)
        self._parts.clear()
        self._too_long = False
        return item
