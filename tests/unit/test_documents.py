"""What the documents name is there, and their lines are as long as they should be."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTED = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
DOCUMENTS = [name for name in LISTED.split("\0") if (ROOT / name).is_file() and name]
WIDEST = 120
NAMED = re.compile(r"`((?:taskflux|handlers|tests|docs|charts|k8s|image|benchmarks|requirements)/[^`\s]*)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def missing(text: str, folder: Path = ROOT) -> Iterator[str]:
    """What a document in this folder names or links to and is not there."""
    text = re.sub(r"## Codebases to learn from.*?(?=\n## )", "", text, flags=re.DOTALL)  # those are elsewhere
    anchors = {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for name in NAMED.findall(text):
        if name != "taskflux/taskflux" and not list(ROOT.glob(name)):  # that one is the image
            yield name
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if ":" in target:
            continue
        file = folder / path
        if path.endswith(".md") and file.exists():
            there = {
                slug(heading) for heading in re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            }
        else:
            there = set() if path else anchors
        if not file.exists() or (anchor and anchor not in there):
            yield target


def too_wide(text: str) -> Iterator[str]:
    """Lines of prose above 120 characters; code, tables, images and where a link leads do not count."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.lstrip().startswith(("|", "![", "<!--")):
            width = len(re.sub(r"`[^`]*`|\]\([^)]*\)|<https?:[^>]*>", "", line))
            if width > WIDEST:
                yield f"{number}: {width} characters"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_is_there(document: str) -> None:
    path = ROOT / document
    assert list(missing(path.read_text(encoding="utf-8"), path.parent)) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_prose_wraps_at_120_characters(document: str) -> None:
    assert list(too_wide((ROOT / document).read_text(encoding="utf-8"))) == []


def test_a_line_that_is_too_wide_is_noticed() -> None:
    words = "word " * 25
    assert list(too_wide(f"# Page\n\n{words}\n| {words} |\n`{words}`\n```\n{words}\n```\n{words}")) == [
        "3: 125 characters",
        "9: 125 characters",
    ]


def test_every_package_and_deployment_stands_in_the_layout() -> None:
    layout = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## Where things live")[2]
    packages = {path.parent.name for path in (ROOT / "taskflux").glob("*/__init__.py")}
    deployments = {path.stem for path in (ROOT / "handlers").glob("*.py")} - {"__init__"}
    assert {name for name in packages if f"  {name}/ " not in layout} == set()
    assert {name for name in deployments if not re.search(rf"\b{name}\b", layout)} == set()


@pytest.mark.parametrize("named", ["`taskflux/nowhere.py`", "[there](docs/nowhere.md)", "[there](#nowhere)"])
def test_what_is_not_there_is_noticed(named: str) -> None:
    assert len(list(missing(f"# Somewhere\n{named} `taskflux/tasks/*.py` [here](#somewhere) [x](https://e.org)"))) == 1
