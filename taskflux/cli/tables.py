"""Tables for people, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

COLOURS: Final[Mapping[str, str]] = {
    "scheduled": "cyan",
    "queued": "cyan",
    "running": "blue",
    "succeeded": "green",
    "dead": "red",
    "uncertain": "yellow",
    "cancelled": "bright_black",
    "open": "red",
    "replayed": "green",
    "discarded": "bright_black",
    "ok": "green",
    "warning": "yellow",
    "problem": "red",
}
"""Words that stand for a state, by the colour they have on a terminal (click leaves it out everywhere else)."""


def json_option(function: F) -> F:
    """`--json`, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(function)


def print_json(document: object) -> None:
    """A document on stdout; text outside ASCII stays readable, but not what a terminal would obey."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=True))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under their headings, each column as wide as its widest cell."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[place]) for row in cells)]) for place, name in enumerate(columns)]
    click.secho(_line([name.upper() for name in columns], widths), bold=True)
    for row in cells:
        click.echo(_line(row, widths, painted=True))


def print_fields(pairs: Mapping[str, object]) -> None:
    """Name and value line by line; what is None or empty is left out."""
    shown = {name: cell(value) for name, value in pairs.items() if value not in (None, "", [], {})}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {painted(value)}")


def painted(text: str) -> str:
    """A word that stands for a state in its colour; any other text as it is."""
    colour = COLOURS.get(text.strip())
    return click.style(text, fg=colour) if colour else text


def cell(value: object) -> str:
    """A value on one line, without anything that a terminal would obey."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else " " if char.isspace() else "�" for char in text)


def shortened(text: str, longest: int) -> str:
    """At most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def moment(text: str | None) -> str:
    """An RFC 3339 time to the second, as it is read in a table."""
    return "" if not text else f"{text[:10]} {text[11:19]}Z"


def counted(number: int, noun: str) -> str:
    """`1 task`, `2,000 tasks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _line(row: Sequence[str], widths: Sequence[int], *, painted: bool = False) -> str:
    padded = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
    padded[-1] = row[-1]
    return "  ".join(_painted(text) if painted else text for text in padded).rstrip()


_painted = painted
