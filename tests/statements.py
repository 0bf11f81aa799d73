"""The statements of the store."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from taskflux.store.database import Statement, statements


def every_statement() -> Mapping[str, Statement]:
    """All of the store, by name."""
    names = [file.name for file in files("taskflux.store").iterdir() if file.name.endswith(".sql")]
    return {name: found for file in sorted(names) for name, found in statements(file.removesuffix(".sql")).items()}
