"""Texts that PostgreSQL accepts, and the JSON of any value that a handler returned: bounded, and never refused.

The side effect has already happened when a handler's result is written, so nothing in it is a reason to refuse it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from taskflux.tasks.errors import class_name, text_of

NOTE_LENGTH: Final = 160
"""Characters of a reason that go into the timeline."""
LONGEST_INDEXED: Final = 255
"""Characters of a text in an indexed column: a row of an index takes about 2,700 bytes."""

LONGEST_JSON: Final = 1_000_000
"""Characters of text in a handler's result or progress; the rest is left out."""
MOST_VALUES: Final = 100_000
"""Values in a handler's result or progress; the rest is left out."""
DEEPEST: Final = 64
"""Levels of a handler's result or progress; what is below is left out."""

_MORE: Final = "…"
_TOO_LARGE: Final = "(more is left out: it is too large)"
_TOO_DEEP: Final = f"(left out: below {DEEPEST} levels)"
_ITSELF: Final = "(left out: it holds itself)"

_encode: Final = json.JSONEncoder(check_circular=False, allow_nan=False).encode
_FEW: Final = 1000
_SHORT: Final = 1000
_NUMBERS: Final = frozenset({int, float, bool, type(None)})


def storable(text: str) -> str:
    """`text` without what PostgreSQL's text type refuses: NUL and lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def indexed(text: str) -> str:
    """`text` as an indexed column holds it: printable, and cut to `LONGEST_INDEXED` characters; so is a filter's value.

    The source of the text (a producer's header, the name of a class) does not limit it, and PostgreSQL refuses a row
    that is too long for its index.
    """
    line = "".join(char if char.isprintable() else "\ufffd" for char in text[: LONGEST_INDEXED + 1])
    return line if len(line) <= LONGEST_INDEXED else line[: LONGEST_INDEXED - 1] + "…"


def note(text: str | None) -> str:
    """`text` as an entry of a timeline holds it; the whole reason of the last one is on the task."""
    return storable(text or "").replace("|", "/").replace("\n", " ")[:NOTE_LENGTH]


def json_text(document: object) -> str | None:
    """The JSON of a handler's result or progress; None where that is not a mapping.

    Only values that JSON does not have are replaced: NaN, Infinity and -Infinity by these words; a date, bytes, a set
    or another object by its text; a key that is not a text by its text. A text in parentheses replaces what cannot be
    read, contains itself, or is too large: `LONGEST_JSON`, `MOST_VALUES`, `DEEPEST`.
    """
    if type(document) is dict and _small(document):
        try:
            return _encode(document)
        except ValueError:  # a float that is not finite, an integer of too many digits
            pass
    copy = _Copy().of(document)
    return _encode(copy) if type(copy) is dict else None


def _small(document: dict[Any, Any]) -> bool:
    """Whether it is small and holds only JSON's own types, as nearly all do. Calls no foreign code."""
    left, level = _FEW, [document]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for value in level:
            kind: Any = type(value)
            if kind in _NUMBERS:
                continue
            if kind is str:
                if len(value) > _SHORT:
                    return False
                continue
            if (kind is not dict and kind is not list) or len(value) > left:
                return False
            left -= len(value)
            if kind is list:
                below += value
                continue
            for key in value:
                if type(key) is not str or len(key) > _SHORT:
                    return False
            below += value.values()
        if not below:
            return True
        level = below
    return False


class _Copy:
    """Copies a document as plain dicts, lists, texts and numbers; this alone calls its foreign code."""

    __slots__ = ("_above", "_characters", "_values")

    def __init__(self) -> None:
        self._values = MOST_VALUES
        self._characters = LONGEST_JSON
        self._above: set[int] = set()

    def of(self, value: object) -> object:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if issubclass(kind, str):
            return self._text(value)  # type: ignore[arg-type]
        if issubclass(kind, int):
            return self._integer(value)  # type: ignore[arg-type]
        if issubclass(kind, float):
            return self._float(value)  # type: ignore[arg-type]
        if id(value) in self._above:
            return _ITSELF
        if len(self._above) == DEEPEST:
            return _TOO_DEEP
        self._above.add(id(value))
        try:
            if issubclass(kind, list):
                return self._array(list.__iter__(value))  # type: ignore[arg-type]
            if issubclass(kind, tuple):
                return self._array(tuple.__iter__(value))  # type: ignore[arg-type]
            if issubclass(kind, Mapping):
                return self._object(value)  # type: ignore[arg-type]
            return self._described(value)
        except BaseException as fault:  # noqa: BLE001 - foreign code: an error means that it cannot be read
            return _unreadable(fault)
        finally:
            self._above.discard(id(value))

    def _array(self, values: Iterable[object]) -> list[object]:
        copy: list[object] = []
        for each in values:
            if self._full():
                copy.append(_TOO_LARGE)
                break
            copy.append(self.of(each))
        return copy

    def _object(self, mapping: Mapping[object, object]) -> dict[str, object]:
        copy: dict[str, object] = {}
        try:
            pairs = dict.items(mapping) if issubclass(type(mapping), dict) else mapping.items()  # type: ignore[arg-type]
            for key, each in pairs:
                if self._full():
                    copy[_MORE] = _TOO_LARGE
                    break
                copy[self._key(key)] = self.of(each)
        except BaseException as fault:  # noqa: BLE001 - foreign code: what was read so far is kept
            copy[_MORE] = _unreadable(fault)
        return copy

    def _full(self) -> bool:
        self._values -= 1
        return self._values < 0 or self._characters <= 0

    def _key(self, key: object) -> str:
        """As `json.dumps` writes it, if it can."""
        if key is None or type(key) is bool:
            return {None: "null", True: "true", False: "false"}[key]
        if issubclass(type(key), str | int | float):
            return self._text(str(self.of(key)))
        return self._text(text_of(key))

    def _text(self, text: str) -> str:
        plain = str.__getitem__(text, slice(0, self._characters + 1))  # for a subclass, too, without its own code
        if len(plain) > self._characters:
            plain = plain[:-1] + _MORE
        self._characters -= len(plain)
        return plain

    def _integer(self, value: int) -> int | str:
        plain = int.__pos__(value)
        try:
            self._characters -= len(str(plain))
        except ValueError:  # https://docs.python.org/3/library/stdtypes.html#int-max-str-digits: no reader takes it
            return f"(an integer of {plain.bit_length()} bits)"
        return plain

    def _float(self, value: float) -> float | str:
        plain = float.__pos__(value)
        if math.isfinite(plain):
            return plain
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"

    def _described(self, value: object) -> str:
        kind: Any = type(value)
        if issubclass(kind, bytes | bytearray):
            return self._text(repr(bytes(kind.__getitem__(value, slice(0, self._characters)))))
        if issubclass(kind, set | frozenset) and kind.__len__(value) > self._values:
            return f"(a set of {kind.__len__(value)})"
        return self._text(text_of(value, LONGEST_JSON))


def _unreadable(fault: BaseException) -> str:
    return f"(cannot be read: {class_name(fault)})"
