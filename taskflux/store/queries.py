"""The named statements of the `.sql` files beside this module."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def _all() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in files("taskflux.store").iterdir():
        if file.name.endswith(".sql"):
            _, *pairs = _NAME.split(file.read_text(encoding="utf-8"))
            found |= {name: body.strip() for name, body in zip(pairs[::2], pairs[1::2], strict=True)}
    return found


def query(name: str) -> str:
    """The statement called `name`.

    Raises:
        KeyError: there is none.
    """
    return _all()[name]


def names() -> list[str]:
    """Of all statements."""
    return sorted(_all())
