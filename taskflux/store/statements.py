"""The SQL of the store: statements with named parameters, in `.sql` files called like the module that runs them.

aiosql (15.0) turns `:name` into asyncpg's `$1` too and needs no prepared statements, but its statements are attributes
made at run time (`Any` to mypy), ignore arguments that they do not know, and take a connection from the pool by
themselves, past our time limits, metrics and errors. What would be left of it for us is the text between two names,
which is this module.

A statement begins with `-- name: …`, keeps its comment, and ends with the first `;` at the end of a line. Python never
concatenates SQL. Four rules hold for all of them:

*   A transition compares and sets (id, state, version); what does not match changes nothing.
*   A batch locks its task rows first, in the order of their ids (a CTE with ORDER BY … FOR UPDATE). The lock of a
    task's row guards its rows in `due` and `claims` too, so nothing locks those before it. Who touches rows in `due`
    without it never waits for them (SKIP LOCKED): whoever holds such a row deletes it or gives it a newer version.
*   A batch comes as arrays, sorted by id, with its least and greatest id beside `= ANY`, so that only its partitions
    are looked at; what belongs to an id is found in another array at width_bucket(id, ids).
*   A statement that locks rows never joins tasks on their id, nor bounds it by what it only learns on the way: such a
    plan prunes partitions while it runs, and PostgreSQL 18 before 18.7 then corrupts its memory when a row that it
    waited for has changed (https://github.com/postgres/postgres/commit/1b5dd3a). `= ANY` of an array is an index scan
    whatever the planner knows of the tables' sizes. So is LATERAL (… OFFSET 0), for reads without locks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

_STATEMENT: Final = re.compile(r"^-- name: (\w+)\n(.*?);$", re.MULTILINE | re.DOTALL)
# What may hold a colon that begins no parameter comes first: comments, strings, quoted names, casts.
_TOKEN: Final = re.compile(r"""--.*|'(?:[^']|'')*'|"[^"]*"|::|(?P<positional>\$\d+)|:(?P<name>[a-z_]\w*)""")


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL as PostgreSQL takes it; the value of `parameters[0]` is its `$1`."""

    name: str
    text: str
    parameters: tuple[str, ...]


@cache
def statements(file: str) -> Mapping[str, Statement]:
    """Those of `file`.sql, by name.

    Raises:
        ValueError: a statement does not end, stands there twice, or has a parameter without a name.
    """
    return parse(files("taskflux.store").joinpath(f"{file}.sql").read_text(encoding="utf-8"))


def parse(text: str) -> Mapping[str, Statement]:
    """The statements of a file."""
    found = [_statement(name, body) for name, body in _STATEMENT.findall(text)]
    if len(found) != len(re.findall("^-- name:", text, re.MULTILINE)):
        raise ValueError("a statement has no ; at the end of a line")
    by_name = {statement.name: statement for statement in found}
    if len(by_name) != len(found):
        raise ValueError("two statements have the same name")
    return by_name


def _statement(name: str, body: str) -> Statement:
    places: dict[str, str] = {}

    def place(token: re.Match[str]) -> str:
        if token["positional"]:
            raise ValueError(f"{name} has a parameter without a name: {token[0]}")
        if token["name"]:
            return places.setdefault(token["name"], f"${len(places) + 1}")
        return token[0]

    return Statement(name, _TOKEN.sub(place, body), tuple(places))
