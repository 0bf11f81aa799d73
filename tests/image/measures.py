"""Figures and facts of a run, said at its end."""

from __future__ import annotations

from collections.abc import Iterator


class Measures:
    """Each said once: the last word on a name counts."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def say(self, name: str, what: str) -> None:
        self._said[name] = what

    def lines(self) -> Iterator[str]:
        yield from (f"{name}: {what}" for name, what in self._said.items())
