"""The table of all metrics, from their declarations: `python -m taskflux.cli.metrics_table docs/observability.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from taskflux.telemetry import metrics
from taskflux.telemetry.instruments import Declared, Label

BEGIN: Final = "<!-- The table is made by `make docs` from taskflux/telemetry/metrics.py. -->"
END: Final = "<!-- The end of the table. -->"
_MOST: Final = 30
"""Values of a label that are listed one by one."""


def table() -> str:
    """A Markdown table of every metric, in the order of their declaration."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "| metric | type | labels | what it tells | by |"
    yield "|---|---|---|---|---|"
    for each in metrics.DECLARED.values():
        sentence = each.sentence.replace("|", "\\|")
        yield f"| `{each.name}` | {_kind(each)} | {_labels(each.labels)} | {sentence} | {each.by} |"


def _kind(declared: Declared) -> str:
    return f"{declared.kind}, exemplars" if declared.exemplars else declared.kind


def _labels(labels: tuple[Label, ...]) -> str:
    return "<br>".join(f"`{label.name}`: {_values(label)}" for label in labels)


def _values(label: Label) -> str:
    listed = label.values if len(label.values) <= _MOST or not label.said else ()
    return ", ".join([*(f"`{value}`" for value in listed), *([label.said] if label.said else [])])


def renewed(page: str) -> str:
    """`page` with the table between its two marks made anew.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for the table: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
