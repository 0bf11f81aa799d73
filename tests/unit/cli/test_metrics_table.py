from __future__ import annotations

from pathlib import Path

import pytest

from taskflux.cli.reference import renewed, table
from taskflux.telemetry.metrics import DECLARED

PAGE = Path(__file__).parents[3] / "docs" / "observability.md"


def test_the_page_of_metrics_is_current_make_docs_writes_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page


def test_every_metric_stands_in_the_table_with_its_sentence() -> None:
    lines = {line.split("`")[1]: line for line in table().splitlines()[2:]}
    assert lines.keys() == DECLARED.keys()
    assert all(DECLARED[name].sentence.replace("|", "\\|") in line for name, line in lines.items())
    assert {line.count(" | ") for line in lines.values()} == {4}


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        renewed("# Observability\n")
