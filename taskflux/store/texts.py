"""What other people's code says, as PostgreSQL takes it: an outcome is written, whatever stands in it."""

from __future__ import annotations

import json
from collections.abc import Mapping


def storable(text: str) -> str:
    """`text` without what PostgreSQL's text type refuses: NUL and lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def json_text(document: Mapping[str, object]) -> str:
    """`document` as JSON; what JSON does not know (a date, a set, a float that is no number) stands as text.

    The side effect has happened by then, so that nothing in its receipt is reason enough to refuse it.
    """
    try:
        return json.dumps(dict(document), default=_describe, skipkeys=True, allow_nan=False)
    except (ValueError, RecursionError):  # a float that is no number; a circle; nested too deeply
        return json.dumps({"unreadable": storable(repr(document))[:1000]})


def _describe(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)
