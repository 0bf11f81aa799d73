"""README.md of the chart: its prose from README.in.md, its tables from values.yaml and from the program's settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from charts.generate.schema import Undescribed
from charts.generate.settings import section_names, settings
from charts.generate.values import Value

FACTS: Final = "<!-- facts -->"
VALUES: Final = "<!-- values -->"
SETTINGS: Final = "<!-- settings -->"
NOTE: Final = "<!-- Made by `make chart-docs` from README.in.md, values.yaml and the program's settings. -->"


def readme(described: Mapping[str, Any], values: Value, prose: str) -> str:
    """The page; `described` is Chart.yaml. Raises Undescribed."""
    facts = (
        f"Chart {described['version']} · TaskFlux {described['appVersion']} · Kubernetes {described['kubeVersion']}"
    ).replace("-0", "", 1)
    page = prose.replace(FACTS, facts)
    page = page.replace(VALUES, "\n".join(_values(values)).strip())
    page = page.replace(SETTINGS, "\n".join(_settings()).strip())
    return f"{NOTE}\n\n{page.strip()}\n"


def _values(values: Value) -> Iterator[str]:
    """A table for each group of keys; those that stand alone come together."""
    alone = [child for child in values.children if not child.children]
    yield from _table(alone)
    for group in values.children:
        if group.children:
            yield f"### `{group.name}`"
            yield ""
            yield from _table(group.children)


def _table(group: tuple[Value, ...] | list[Value]) -> Iterator[str]:
    yield "| value | default | meaning |"
    yield "|---|---|---|"
    for child in group:
        yield from _rows(child)
    yield ""


def _rows(value: Value) -> Iterator[str]:
    if value.description is None:
        if not value.children:
            raise Undescribed(f"{value.name} has no comment that begins with `# --`")
        for child in value.children:
            yield from _rows(child)
        return
    yield f"| `{value.name}` | {_shown(value.default)} | {_cell(value.description)} |"


def _settings() -> Iterator[str]:
    for section, about in section_names():
        yield f"### `settings.{section}`"
        yield ""
        yield about
        yield ""
        yield "| value | default | meaning |"
        yield "|---|---|---|"
        for each in settings():
            if each.section == section:
                default = each.schema.get("default")
                yield f"| `settings.{section}.{each.name}` | {_shown(default)} | {_meaning(each.schema)} |"
        yield ""


def _meaning(schema: Mapping[str, Any]) -> str:
    choices = ", ".join(schema.get("enum", ()))
    return _cell(schema.get("description", "") + (f" ({choices})" if choices else ""))


def _shown(default: object) -> str:
    if default in (None, "", {}, []):
        return ""
    return f"`{_cell(default if isinstance(default, str) else json.dumps(default, ensure_ascii=False))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
