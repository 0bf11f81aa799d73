"""The dashboards against Grafana's schema, by TypeScript's strict compiler."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.observability.boards import boards
from tests.observability.grafana_schema import complaints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BOARDS = boards()


def first(board: dict[str, Any], kind: str) -> dict[str, Any]:
    panel: dict[str, Any] = next(panel for panel in board["panels"] if panel["type"] == kind)
    return panel


MISSPELT: dict[str, Callable[[dict[str, Any]], None]] = {
    "of the dashboard": lambda board: board.update(refesh="30s"),
    "of a variable": lambda board: board["templating"]["list"][0].update(lable="x"),
    "of a link": lambda board: board["links"][0].update(keeptime=True),
    "of an annotation": lambda board: board["annotations"]["list"][0].update(iconcolor="blue"),
    "of a panel": lambda board: first(board, "timeseries").update(desription="x"),
    "of a query": lambda board: first(board, "timeseries")["targets"][0].update(legendFromat="x"),
    "of a row": lambda board: first(board, "row").update(colapsed=False),
    "of a unit": lambda board: first(board, "stat")["fieldConfig"]["defaults"].update(unti="s"),
    "of lines": lambda board: first(board, "timeseries")["fieldConfig"]["defaults"]["custom"].update(lineWdith=1),
    "of a number's options": lambda board: first(board, "stat")["options"].update(grphMode="area"),
    "of a legend": lambda board: first(board, "timeseries")["options"]["legend"].update(placment="bottom"),
    "of a heat map": lambda board: first(board, "heatmap")["options"]["color"].update(shceme="Oranges"),
    "of states": lambda board: first(board, "state-timeline")["options"].update(rowHieght=1),
}
UNKNOWN: dict[str, Callable[[dict[str, Any]], None]] = {
    "a tooltip's mode": lambda board: first(board, "timeseries")["options"]["tooltip"].update(mode="mutli"),
    "a kind of panel": lambda board: first(board, "stat").update(type="satt"),
    "a text for a number": lambda board: first(board, "stat")["gridPos"].update(w="4"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the compiler says of ours, and of the overview with one mistake each."""
    mistaken = {name: copy.deepcopy(dict(BOARDS["overview"])) for name in (*MISSPELT, *UNKNOWN)}
    for name, board in mistaken.items():
        (MISSPELT | UNKNOWN)[name](board)
    return complaints({**BOARDS, **mistaken}, tmp_path_factory.mktemp("tsc"))


@pytest.mark.parametrize("name", BOARDS)
def test_grafanas_schema_knows_every_field(name: str, said: dict[str, list[str]]) -> None:
    assert said[name] == []


@pytest.mark.parametrize("where", MISSPELT)
def test_a_misspelt_field_is_detected(where: str, said: dict[str, list[str]]) -> None:
    assert "does not exist in type" in "".join(said[where])


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_value_that_grafana_does_not_know_is_detected(what: str, said: dict[str, list[str]]) -> None:
    assert "is not assignable to type" in "".join(said[what])
