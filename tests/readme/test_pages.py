"""What README.md and docs/ say can be followed: commands, settings, values of the chart."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.readme.blocks import ELSEWHERE, Saved, fences, steps, unexplained

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "charts" / "taskflux" / "README.in.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
SETTING = re.compile(r"\bTASKFLUX_([A-Z0-9]+)__([A-Z0-9_]+)\b")
PROSE = re.compile(r"```.*?```|<!--.*?-->|\|.*?\n", re.DOTALL)
WORDS_A_MINUTE = 240


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def unknown(text: str) -> set[str]:
    """The settings that a page names and the program does not have."""
    own = set(re.findall(r"# TASKFLUX_([A-Z0-9]+)__", text))  # of a provider that the page itself declares
    return {
        f"TASKFLUX_{group}__{name}"
        for group, name in SETTING.findall(text)
        if (group, name) not in known_settings() and group not in own
    }


@cache
def known_settings() -> set[tuple[str, str]]:
    """What docs/settings.md lists, which is made from the code; and what only the command reads."""
    known, group = {("API", "URL"), ("API", "KEY")}, ""
    for line in (ROOT / "docs" / "settings.md").read_text().splitlines():
        if heading := re.match(r"\*\*`TASKFLUX_([A-Z0-9]+)__…`\*\*", line):
            group = heading[1]
        elif row := re.match(r"\| `([A-Z0-9_]+)` \|", line):
            known.add((group, row[1]))
    return known


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_shell_block_is_checked_or_says_why_it_cannot_run(page: Path) -> None:
    assert unexplained(page.read_text(), ROOT) == []
    if (elsewhere := ELSEWHERE.get(relative(page))) is None:
        steps(page.read_text())
    else:
        assert (ROOT / elsewhere).exists()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_block_of_python_compiles(page: Path) -> None:
    for fence in fences(page.read_text()):
        if fence.language == "python":
            compile(fence.body, f"{page.name}:{fence.line}", "exec", flags=0x2000)  # await at the top is allowed


def test_every_page_of_the_docs_stands_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    linked = {(ROOT / "docs" / target.partition("#")[0]).resolve() for target in LINK.findall(index)}
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.parent.name not in ("runbooks", "decisions")}
    assert {relative(page) for page in pages - linked - {ROOT / "docs" / "README.md"}} == set()


def test_the_readme_is_read_in_five_minutes() -> None:
    words = len(PROSE.sub("", (ROOT / "README.md").read_text()).split())
    assert words <= 5 * WORDS_A_MINUTE, f"{words} words of prose"


def test_the_readme_shows_something_within_its_first_screen() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:20])
    assert re.search(r"!\[[^\]]+\]\(docs/images/[\w-]+\.png\)", first)


def over(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values of a chart over its defaults, as Helm lays them."""
    merged = dict(defaults)
    for name, value in values.items():
        below = merged.get(name)
        merged[name] = over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


@pytest.mark.parametrize("page", [page for page in PAGES if "guides" in page.parts], ids=relative)
def test_values_in_the_guides_fit_the_chart(page: Path) -> None:
    chart = ROOT / "charts" / "taskflux"
    defaults = yaml.safe_load((chart / "values.yaml").read_text())
    validator = jsonschema_rs.validator_for(json.loads((chart / "values.schema.json").read_text()))
    for fence in fences(page.read_text()):
        if fence.language == "yaml" and fence.body.startswith("# values.yaml"):
            values = over(defaults, yaml.safe_load(fence.body))
            assert [error.message for error in validator.iter_errors(values)] == [], f"line {fence.line}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "upgrading.md"], ids=relative)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    assert unknown(page.read_text()) == set()


def test_a_setting_that_no_program_reads_is_noticed() -> None:
    assert unknown("`TASKFLUX_KAFKA__PARTITION` `TASKFLUX_KAFKA__PARTITIONS`") == {"TASKFLUX_KAFKA__PARTITION"}


def test_files_of_the_tutorial_are_python_that_a_reader_can_save() -> None:
    saved = [step for step in steps((ROOT / "docs" / "tutorial.md").read_text()) if isinstance(step, Saved)]
    assert len(saved) >= 2
    for step in saved:
        compile(step.text, step.path, "exec")
