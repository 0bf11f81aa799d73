"""The chart as an archive, and the files in it that are made from others."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from charts.package import package
from tests.chart.rendering import CHART, helm

ROOT = CHART.parents[1]
MOMENT = 1_700_000_000


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    package(CHART, tmp_path / "first", MOMENT)
    (archive,) = (tmp_path / "first").glob("taskflux-*.tgz")
    return archive


def test_the_same_chart_gives_the_same_bytes_whenever_it_is_packaged(archive: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "checkout" / "taskflux"
    shutil.copytree(CHART, elsewhere)
    for path in elsewhere.rglob("*"):
        path.touch()
    package(elsewhere, tmp_path / "second", MOMENT)
    (again,) = (tmp_path / "second").glob("*.tgz")
    assert again.name == archive.name
    assert digest(again) == digest(archive)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_archive_holds_what_helm_needs_and_no_development_files(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        names = {name.removeprefix("taskflux/") for name in opened.getnames()}
    assert {"Chart.yaml", "values.yaml", "values.schema.json", "README.md", "templates/NOTES.txt"} <= names
    assert not [name for name in names if name.startswith("ci/") or name.endswith((".py", ".in.md", ".gotmpl"))]


def test_the_package_renders(archive: Path) -> None:
    values = CHART / "ci" / "default-values.yaml"
    done = helm("template", "tf", str(archive), "--values", str(values))
    assert done.returncode == 0, done.stderr


def test_the_schema_and_the_readme_match_the_values() -> None:
    command = [sys.executable, "-m", "charts.generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
