"""The named statements of `queries.sql`."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def _all() -> dict[str, str]:
    text = files("handlers.store").joinpath("queries.sql").read_text(encoding="utf-8")
    _, *pairs = _NAME.split(text)
    return {name: body.strip() for name, body in zip(pairs[::2], pairs[1::2], strict=True)}


def query(name: str) -> str:
    """The statement called `name`.

    Raises:
        KeyError: there is none.
    """
    return _all()[name]
