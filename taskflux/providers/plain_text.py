"""Plain text made from html: with tables, lists, the alt texts of images, and the targets of links."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from justhtml import NodeType

MOST_HTML: Final = 500_000
"""Characters of html up to which it is converted, which takes about two seconds of one core."""

_PARAGRAPHS: Final = frozenset({
    "address", "article", "aside", "blockquote", "dl", "fieldset", "figure", "footer", "form", "h1", "h2", "h3", "h4",
    "h5", "h6", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "table", "ul",
})  # fmt: skip
_LINES: Final = frozenset({
    "caption", "center", "dd", "details", "div", "dt", "figcaption", "legend", "li", "option", "summary", "tr",
})  # fmt: skip
_UNSEEN: Final = frozenset({
    "audio", "canvas", "embed", "head", "iframe", "math", "object", "script", "style", "svg", "template", "title",
    "video",
})  # fmt: skip
_LISTS: Final = frozenset({"ol", "ul"})
_DEEPEST: Final = 8
"""Nesting depth up to which lists are indented further."""
_TARGETS: Final = ("http://", "https://", "mailto:", "tel:")

# Marks within the text until it is cut into lines; of the html's own there are none left by then.
_CELL: Final = "\x1f"
_PARAGRAPH: Final = "\x1e"
_LINE: Final = "\x1d"
_BULLET: Final = "\x1c"
_KEPT_SPACE: Final = "\xa0"
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")
_AFTER_BULLET: Final = re.compile(rf"{_BULLET}[{_LINE}{_PARAGRAPH}\s]*")
_BLANK_LINES: Final = re.compile(r"\n{3,}")
_SPACES: Final = re.compile(r"[ \t\n\f\r]+")
_NUMBER: Final = re.compile("-?[0-9]{1,9}")


def plain_text(html: str) -> str:
    """The visible text, as lines; empty if there is none, or if the html is longer than `MOST_HTML`."""
    if len(html) > MOST_HTML:
        return ""
    from justhtml import JustHTML

    # Nothing is displayed or executed, so no sanitizing is needed.
    return _cut(_Reading().all(JustHTML(html, sanitize=False, scripting_enabled=False).root))


@dataclass(frozen=True, slots=True)
class _End:
    """The end of an element whose text begins at the part `start`."""

    element: Any
    start: int


class _Reading:
    """A walk over the tree in document order, without recursion, so that deep html is safe."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._numbers: defaultdict[int, int] = defaultdict(int)
        self._lists = 0
        self._preformatted = 0

    def all(self, root: NodeType) -> str:
        """The text below `root`, with marks where lines, paragraphs and cells end."""
        waiting: list[NodeType | _End] = [root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, _End):
                self._end(node)
            elif node.name == "#text":
                self._text(str(node.data))
            elif not _hidden(node):
                self._begin(node)
                waiting.append(_End(node, len(self._parts)))
                waiting.extend(reversed(node.children or ()))
        return "".join(self._parts)

    def _text(self, text: str) -> None:
        text = _CONTROLS.sub("", text)
        if self._preformatted:
            self._parts.append(text.replace("\r\n", "\n").replace("\t", _KEPT_SPACE * 4).replace(" ", _KEPT_SPACE))
        else:
            self._parts.append(_SPACES.sub(" ", text))

    def _begin(self, element: Any) -> None:
        name = element.name
        self._parts.append(_PARAGRAPH if name in _PARAGRAPHS else _LINE if name in _LINES else "")
        if name == "br":
            self._parts.append("\n")
        elif name in _LISTS:
            self._lists += 1
            self._numbers[id(element)] = _number(element.attrs.get("start"), 1) - 1
        elif name == "li":
            self._parts.append(self._bullet(element))
        elif name == "img" and (alt := (element.attrs.get("alt") or "").strip()):
            self._text(f"[{alt}]")
        elif name == "pre":
            self._preformatted += 1

    def _end(self, end: _End) -> None:
        name = end.element.name
        if name == "a":
            self._parts.append(_target(end.element.attrs.get("href"), "".join(self._parts[end.start :])))
        elif name == "pre":
            self._preformatted -= 1
        elif name in _LISTS:
            self._lists -= 1
        if name in ("td", "th"):
            self._parts.append(_CELL)
        elif name in _PARAGRAPHS:
            self._parts.append(_PARAGRAPH)
        elif name in _LINES:
            self._parts.append(_LINE)

    def _bullet(self, item: Any) -> str:
        of = item.parent
        indent = _KEPT_SPACE * 2 * min(max(self._lists - 1, 0), _DEEPEST)
        if of is None or of.name != "ol":
            return f"{indent}* {_BULLET}"
        number = _number(item.attrs.get("value"), self._numbers[id(of)] + 1)
        self._numbers[id(of)] = number
        return f"{indent}{number}. {_BULLET}"


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and _NUMBER.fullmatch(text.strip()) else otherwise


def _hidden(element: Any) -> bool:
    if element.name in _UNSEEN or element.name.startswith(("#comment", "!")):
        return True
    attributes = element.attrs or {}
    return "hidden" in attributes or "display:none" in "".join((attributes.get("style") or "").split()).lower()


def _target(href: str | None, shown: str) -> str:
    """The target of a link, unless its text is the target."""
    href = _CONTROLS.sub("", "".join((href or "").split()))
    if not href.lower().startswith(_TARGETS):
        return ""
    short = href.removeprefix("mailto:").removeprefix("tel:").rstrip("/")
    return "" if short in shown else f" <{href}>"


def _cut(text: str) -> str:
    """Lines without spaces at their ends, at most one blank line between them, a bar between the cells of a row."""
    text = _AFTER_BULLET.sub("", text)
    paragraphs = ("\n".join(filter(None, map(_line, each.split(_LINE)))) for each in text.split(_PARAGRAPH))
    return _BLANK_LINES.sub("\n\n", "\n\n".join(filter(None, paragraphs)))


def _line(text: str) -> str:
    """The text between two blocks: one line, or more with br or pre."""
    lines = []
    for line in text.split("\n"):
        cells = (_SPACES.sub(" ", cell).strip(" ") for cell in line.split(_CELL))
        lines.append(" | ".join(filter(None, cells)).replace(_KEPT_SPACE, " ").rstrip())
    return "\n".join(lines).strip("\n")
