"""The CI workflow: right by actionlint, confined, and made of commands that there are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART
from tests.k8s.files import ROOT, WEEKLY, WORKFLOW

RELEASE_NAMES = ROOT / ".github" / "release-names"
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

Job = Mapping[str, Any]


def _workflow() -> Mapping[Any, Any]:
    loaded: Mapping[Any, Any] = yaml.safe_load(WORKFLOW.read_text())
    return loaded


def _jobs() -> Mapping[str, Job]:
    jobs: Mapping[str, Job] = _workflow()["jobs"]
    return jobs


def _steps() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, job in _jobs().items():
        for step in job["steps"]:
            yield name, step


def _commands() -> Iterator[tuple[str, str]]:
    """(job, line) of everything that is run, each value of a matrix filled in."""
    for name, step in _steps():
        matrix = _jobs()[name].get("strategy", {}).get("matrix", {})
        for line in str(step.get("run", "")).splitlines():
            found = re.search(r"\$\{\{ matrix\.(\w+) \}\}", line)
            values = matrix[found[1]] if found else [""]
            for value in values:
                yield name, re.sub(r"\$\{\{ matrix\.\w+ \}\}", str(value), line)


def _lint(actionlint: Path, file: Path) -> subprocess.CompletedProcess[str]:
    """Without the shell and Python linters that it would call if they happened to be installed."""
    options = ["-no-color", "-shellcheck=", "-pyflakes="]
    return subprocess.run([actionlint, *options, str(file)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("workflow", [WORKFLOW, WEEKLY], ids=lambda file: file.stem)
def test_actionlint_finds_nothing(actionlint: Path, workflow: Path) -> None:
    done = _lint(actionlint, workflow)
    assert done.returncode == 0, done.stdout


def test_actionlint_finds_what_is_wrong(actionlint: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "ci.yml"
    wrong.write_text(WORKFLOW.read_text().replace("steps.names.outputs.image", "steps.name.outputs.image"))
    assert _lint(actionlint, wrong).returncode == 1


def test_every_action_is_pinned_by_commit_with_its_version_beside_it() -> None:
    used = [line.strip() for line in WORKFLOW.read_text().splitlines() if "uses:" in line]
    assert used
    for line in used:
        assert re.fullmatch(r"(- )?uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_is_of_one_version_wherever_it_is_used() -> None:
    used = {step["uses"] for _, step in _steps() if "uses" in step}
    assert len({action.partition("@")[0] for action in used}) == len(used)


def test_the_weekly_run_has_the_same_actions_and_may_write_nothing() -> None:
    weekly = yaml.safe_load(WEEKLY.read_text())
    actions = {step["uses"] for step in weekly["jobs"]["e2e"]["steps"] if "uses" in step}
    assert actions <= {step["uses"] for _, step in _steps() if "uses" in step}
    assert (weekly["permissions"], weekly["jobs"]["e2e"]["permissions"]) == ({}, {"contents": "read"})


def test_only_the_release_may_write() -> None:
    assert _workflow()["permissions"] == {}
    writes = {name: sorted(k for k, v in job["permissions"].items() if v == "write") for name, job in _jobs().items()}
    assert {name: rights for name, rights in writes.items() if rights} == {
        "release": ["attestations", "id-token", "packages"]
    }


def test_the_release_waits_for_every_other_job_and_is_of_a_tag() -> None:
    release = _jobs()["release"]
    assert set(release["needs"]) == _jobs().keys() - {"release"}
    assert release["if"] == "startsWith(github.ref, 'refs/tags/v')"


def test_no_secret_is_given_to_a_job_that_runs_what_a_pull_request_says() -> None:
    triggers = _workflow()[True]  # YAML 1.1 reads `on` as true
    assert triggers.keys() == {"push", "pull_request"}
    assert {name for name, step in _steps() if "secrets." in str(step)} == {"release"}


def test_no_checkout_leaves_its_token_behind() -> None:
    for name, step in _steps():
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False, name


def test_every_job_ends_in_time_and_a_newer_push_ends_an_older_run() -> None:
    assert all(0 < job["timeout-minutes"] <= 60 for job in _jobs().values())
    assert "github.ref" in _workflow()["concurrency"]["group"]


def test_what_is_called_with_make_is_a_target() -> None:
    called = {found[1] for _, line in _commands() if (found := re.search(r"\bmake (\S+)", line))}
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    assert called >= {"lint", "types", "test", "test-kafka", "image", "test-image", "test-chart", "test-k8s", "e2e"}
    assert called >= {"test-long", "mutate"}
    assert called - targets == set()


def test_what_is_called_otherwise_is_a_program_of_ours() -> None:
    for _, line in _commands():
        for path in re.findall(r"(?:^|\s)((?:\.github|requirements|image)/\S+)", line):
            assert os.access(ROOT / path, os.X_OK), path


def test_the_tests_run_on_every_python_from_the_oldest_that_is_promised() -> None:
    versions = _jobs()["test"]["strategy"]["matrix"]["python"]
    assert versions[0] == PROJECT["requires-python"].removeprefix(">=")
    minors = [int(version.partition(".")[2]) for version in versions]
    assert minors == list(range(minors[0], minors[0] + len(minors)))
    assert len(minors) >= 3


def test_the_image_is_scanned_before_anything_is_done_with_it() -> None:
    steps = _jobs()["image"]["steps"]
    (scan,) = (step for step in steps if "trivy" in step.get("uses", ""))
    assert scan["with"]["exit-code"] == "1"
    assert scan["with"]["image-ref"] in "".join(step.get("run", "") for step in steps[: steps.index(scan)])


def test_what_is_scanned_and_released_is_built_upon_one_base_by_its_digest() -> None:
    image, release = _jobs()["image"], _jobs()["release"]
    (asks,) = (step for step in image["steps"] if "image/base.py" in step.get("run", ""))
    (builds,) = (step for step in image["steps"] if "make image" in step.get("run", ""))
    found = "${{ steps." + asks["id"] + ".outputs.base }}"
    assert image["outputs"]["base"] == builds["env"]["BASE"] == found
    assert image["steps"].index(asks) < image["steps"].index(builds)
    (pushes,) = (step for step in release["steps"] if "build-push-action" in step.get("uses", ""))
    assert "BASE=${{ needs.image.outputs.base }}" in pushes["with"]["build-args"].splitlines()
    assert "image" in release["needs"]


def _release_names(tag: str, repository: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "GITHUB_REF_NAME": tag, "GITHUB_REPOSITORY": repository}
    return subprocess.run([RELEASE_NAMES], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def repository() -> str:
    """The one whose image the chart names."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    image = yaml.safe_load((CHART / "values.yaml").read_text())["image"]
    assert image["registry"] == "ghcr.io"
    return str(image["repository"])


def test_a_release_is_named_after_its_tag(repository: str) -> None:
    done = _release_names(f"v{PROJECT['version']}", repository.upper())
    assert done.returncode == 0, done.stderr
    names = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert names["version"] == PROJECT["version"]
    assert names["image"] == f"ghcr.io/{repository}"
    assert names["charts"] == f"ghcr.io/{repository.partition('/')[0]}/charts"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", names["created"])
    used = set(re.findall(r"steps\.names\.outputs\.(\w+)", WORKFLOW.read_text()))
    assert used == names.keys()


@pytest.mark.parametrize("tag", ["v999.0.0", "0.1.0", "v1", "v0.1", "main"])
def test_no_other_tag_is_released(repository: str, tag: str) -> None:
    done = _release_names(tag, repository)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "::error::" in done.stderr


def test_a_chart_that_names_a_foreign_image_is_not_released(repository: str) -> None:
    done = _release_names(f"v{PROJECT['version']}", "somebody/else")
    assert done.returncode == 1
    assert f"ghcr.io/{repository}" in done.stderr
