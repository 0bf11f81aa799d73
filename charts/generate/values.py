"""Reads a chart's values together with their comments: `# -- …` above a key is what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

MARK: Final = "# -- "


@dataclass(frozen=True, slots=True)
class Value:
    """One key: `children` are those of a mapping that is written as a block, since only those can have comments."""

    path: tuple[str, ...]
    default: Any
    description: str | None
    children: tuple[Value, ...]

    @property
    def name(self) -> str:
        """As `--set` writes it."""
        return ".".join(self.path)

    def below(self, name: str) -> Value:
        """The child of this name. Raises KeyError."""
        for child in self.children:
            if child.path[-1] == name:
                return child
        raise KeyError(name)


def read(text: str) -> Value:
    """All values, as the children of one without a name."""
    loader = yaml.CSafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("values are a mapping")
        return _value((), node, None, text.splitlines(), loader)
    finally:
        loader.dispose()


def _value(
    path: tuple[str, ...], node: yaml.Node, description: str | None, lines: Sequence[str], loader: yaml.CSafeLoader
) -> Value:
    children: tuple[Value, ...] = ()
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        children = tuple(
            _value((*path, key.value), below, _description(lines, key.start_mark.line), lines, loader)
            for key, below in node.value
        )
    return Value(path, loader.construct_document(node), description, children)


def _description(lines: Sequence[str], line: int) -> str | None:
    """The text of the comment that ends right above `line`, from its mark on."""
    said = list(_comment_above(lines, line))
    marked = [number for number, text in enumerate(said) if text.startswith(MARK)]
    if not marked:
        return None
    first, *more = said[marked[-1] :]
    return " ".join([first.removeprefix(MARK), *(text.removeprefix("#").strip() for text in more)])


def _comment_above(lines: Sequence[str], line: int) -> Sequence[str]:
    def upwards() -> Iterator[str]:
        for text in reversed(lines[:line]):
            if not text.lstrip().startswith("#"):
                return
            yield text.strip()

    return list(upwards())[::-1]
