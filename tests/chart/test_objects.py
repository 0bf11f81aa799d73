"""Which objects a release is made of: for each `ci/` file exactly those that are written down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.chart.cases import EACH_CI_FILE
from tests.chart.expected import OBJECTS
from tests.chart.rendering import CI, RELEASE, render

WANTED = {"default", "minimal", "production", "own-handler", "kafka-sasl-tls", "operators", "first", "e2e"}

HASH = re.compile(r"-[0-9a-f]{6}$")


def case(path: Path) -> str:
    return path.name.removesuffix("-values.yaml")


def expected(name: str) -> set[tuple[str, str]]:
    """(kind, name) of each object; a line that begins with blanks alone goes on with the kind above."""
    found: set[tuple[str, str]] = set()
    kind = ""
    for line in OBJECTS[name].rstrip().splitlines():
        words = line.split()
        if words and words[0][0].isupper():
            kind, *words = words
        for word in words:
            full = f"{RELEASE}-taskflux" if word == "." else f"{RELEASE}-taskflux-{word}"
            full = word[1:] if word.startswith("/") else full
            assert (kind, full) not in found, f"{kind} {word} is written down twice"
            found.add((kind, full))
    return found


def test_there_is_a_file_of_values_for_each_way_of_installing() -> None:
    assert {case(path) for path in CI} == OBJECTS.keys() >= WANTED


@EACH_CI_FILE
def test_the_objects_are_exactly_those_that_are_written_down(ci: Path) -> None:
    rendering = render(ci)
    found = {(kind, HASH.sub("-*", name) if kind == "Job" else name) for kind, name in rendering.names()}
    assert found == expected(case(ci))
    assert len(rendering.names()) == len(rendering.objects)


@pytest.mark.parametrize("release", ["other", "taskflux"])
def test_another_name_of_the_release_changes_names_alone(release: str) -> None:
    for ci in CI:
        kinds = sorted(each.kind for each in render(ci).objects)
        assert sorted(each.kind for each in render(ci, release=release).objects) == kinds
