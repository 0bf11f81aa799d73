"""The chart's dashboards, as they stand there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.observability.alerts import ROOT
from tests.observability.promql import filled

DASHBOARDS: Final = ROOT / "charts/taskflux/dashboards"

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One query of a panel, its variables not filled in."""

    board: str
    panel: str
    legend: str
    expr: str

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}" + (f" [{self.legend}]" if self.legend else "")


def boards() -> dict[str, Document]:
    """File name without its ending → dashboard."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}
    assert found, f"no dashboards in {DASHBOARDS}"
    return found


def panels(board: Document) -> list[Document]:
    """What shows something: rows are headings only."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def questions() -> Iterator[Question]:
    """Every query of every panel, and those of the annotations."""
    for name, board in boards().items():
        row = ""
        for panel in board["panels"]:
            if panel["type"] == "row":
                row = panel["title"]
                continue
            for target in panel["targets"]:
                yield Question(name, f"{row} / {panel['title']}", target.get("legendFormat", ""), target["expr"])
        for annotation in board["annotations"]["list"]:
            yield Question(name, f"annotation {annotation['name']}", "", annotation["target"]["expr"])


def expressions(handler: str = ".*") -> dict[str, str]:
    """What is asked → PromQL with its variables filled in."""
    found = {str(each): filled(each.expr, handler=handler) for each in questions()}
    assert len(found) == len(list(questions())), "two queries of one name"
    return found
