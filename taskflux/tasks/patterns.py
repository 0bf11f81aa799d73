"""Regular expressions of payloads, each with a sentence for its error message: an answer never quotes an expression."""

from __future__ import annotations

from typing import Final

_SAID: Final[dict[str, str]] = {}

UNSAID: Final = "does not have the form that its type declares"


def said_as(pattern: str, sentence: str) -> str:
    """Return `pattern`, with `sentence` as the error of a text that does not match it: "may not have line breaks"."""
    _SAID[pattern] = sentence
    return pattern


def sentence_of(pattern: str) -> str | None:
    """The sentence of a pattern; None if it has none."""
    return _SAID.get(pattern)


ASCII: Final = said_as(r"^[\x00-\x7f]*$", "may have only ASCII characters")

AWARE: Final = said_as(
    r"(?:[Zz]|[+\-][0-9]{2}:?[0-9]{2})\s*$|^\s*[+\-]?[0-9.]+\s*$",
    "has no offset from UTC: end it with Z or, for example, +02:00",
)
"""A time with an offset, or in seconds since 1970."""

NAIVE: Final = said_as(
    r"^(?!.*(?:[Zz]|[+\-][0-9]{2}:?[0-9]{2})\s*$)(?!\s*[+\-]?[0-9.]+\s*$)",
    "may have no offset from UTC",
)
"""A time without one."""

DECIMAL: Final = said_as(
    r"^\s*[+\-]?(?:[0-9]+(?:_[0-9]+)*\.?(?:[0-9]+(?:_[0-9]+)*)?|\.[0-9]+(?:_[0-9]+)*)(?:[eE][+\-]?[0-9]+)?\s*$",
    "is not a decimal number, such as 12.50",
)
"""A decimal number written as text."""

INTEGER_NAME: Final = said_as(r"^\s*[+\-]?[0-9]+(?:_[0-9]+)*(?:\.0+)?\s*$", "is not a whole number")
NUMBER_NAME: Final = said_as(r"^\s*[+\-]?(?:[0-9_]+\.?[0-9_]*|\.[0-9_]+)(?:[eE][+\-]?[0-9]+)?\s*$", "is not a number")
"""Keys of an object that a handler reads as numbers."""

BOOLEAN_NAME: Final = said_as(
    "^(?:0|1|[Oo][Nn]|[Oo][Ff][Ff]|[TtFfYyNn]|[Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy][Ee][Ss]|[Nn][Oo])$",
    "is neither true nor false",
)
