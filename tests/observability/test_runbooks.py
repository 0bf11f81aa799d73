"""Every alert has its page, and everything that the pages name exists."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from taskflux.cli import main
from tests.observability.alerts import RUNBOOKS, rules
from tests.observability.boards import boards

RULES = rules()
SECTIONS = ["What it means", "What users notice", "How to find out", "How to fix it", "How to silence it"]
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(RUNBOOKS.glob("*.md"))}


def test_alerts_and_pages_are_the_same() -> None:
    assert PAGES.keys() == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_is_wrong_how_bad_it_is_and_for_how_long(name: str) -> None:
    rule = RULES[name]
    assert rule["alert"] == name, "the file is named after its alert"
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}, "the chart adds runbook_url"
    for text in rule["annotations"].values():
        for label in re.findall(r"\$labels\.(\w+)", text):
            assert re.search(rf"by \([^)]*\b{label}\b", rule["expr"]), f"{label} is not in the answer"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_every_required_section(name: str) -> None:
    page = PAGES[name]
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", page, re.M) == SECTIONS
    assert f"alertname={name}" in page.partition("## How to silence it")[2]


@pytest.mark.parametrize("name", PAGES)
def test_the_dashboards_and_panels_that_it_names_are_there(name: str) -> None:
    found = {board["title"]: board for board in boards().values()}
    rows = {panel["title"] for board in found.values() for panel in board["panels"] if panel["type"] == "row"}
    panels = {panel["title"] for board in found.values() for panel in board["panels"]} - rows
    named = set(re.findall(r"\*(TaskFlux / [^*]+)\*", PAGES[name]))
    assert named
    assert named <= found.keys()
    for group in re.findall(r"[Rr]ows? ((?:\*[^*]+\*(?:, | and )?)+)", PAGES[name]):
        assert set(re.findall(r"\*([^*]+)\*", group)) <= rows
    assert set(re.findall(r"\*\*([^*]+)\*\*", PAGES[name])) <= panels


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_that_it_names_exist_with_their_options(name: str) -> None:
    lines = re.findall(r"taskflux [a-z][^`\n#]*", PAGES[name])
    for line in lines:
        command: click.Command = main
        words = shlex.split(line)[1:]
        with click.Context(main) as context:
            while isinstance(command, click.Group):
                found = command.get_command(context, words.pop(0))
                assert found is not None, line
                command = found
        options = {option for each in command.params for option in each.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_that_it_leads_to_are_there(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGES[name]):
        assert (RUNBOOKS / target).is_file(), target


def test_the_documentation_lists_every_alert_with_its_page_and_its_patience() -> None:
    text = (RUNBOOKS.parent / "observability.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| \[(\w+)\]\(runbooks/\1\.md\) \|.*\| ([^|]+) \|$", text, re.M))
    words = {"0m": "at once", "1m": "1 minute"}
    assert listed == {
        name: words.get(rule["for"], rule["for"].replace("m", " minutes")) for name, rule in RULES.items()
    }
