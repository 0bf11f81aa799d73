"""What the documents name is there: a file that is renamed is renamed in them too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
NAMED = re.compile(r"`((?:taskflux|handlers|tests|docs|charts|k8s|image|benchmarks|requirements)/[^`\s]*)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def missing(text: str) -> Iterator[str]:
    """What a document names or links to and is not there."""
    text = re.sub(r"## Codebases to learn from.*?(?=\n## )", "", text, flags=re.DOTALL)  # those are elsewhere
    anchors = {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for name in NAMED.findall(text):
        if not list(ROOT.glob(name)):
            yield name
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if ":" in target:
            continue
        if not (ROOT / path).exists() or (not path and anchor not in anchors):
            yield target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_is_there(document: str) -> None:
    assert list(missing((ROOT / document).read_text(encoding="utf-8"))) == []


def test_every_package_and_deployment_stands_in_the_layout() -> None:
    layout = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## Where things live")[2]
    packages = {path.parent.name for path in (ROOT / "taskflux").glob("*/__init__.py")}
    deployments = {path.stem for path in (ROOT / "handlers").glob("*.py")} - {"__init__"}
    assert {name for name in packages if f"  {name}/ " not in layout} == set()
    assert {name for name in deployments if not re.search(rf"\b{name}\b", layout)} == set()


@pytest.mark.parametrize("named", ["`taskflux/nowhere.py`", "[there](docs/nowhere.md)", "[there](#nowhere)"])
def test_what_is_not_there_is_noticed(named: str) -> None:
    assert len(list(missing(f"# Somewhere\n{named} `taskflux/tasks/*.py` [here](#somewhere) [x](https://e.org)"))) == 1
