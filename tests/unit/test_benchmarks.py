"""The tables of the benchmark suite: what is shown beside what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import writes
from benchmarks.report import Column, Table

ROOT = Path(__file__).parents[2]


def table(floor: str | None) -> Table:
    columns = [Column("ms", 1, spread=True), Column("tasks")]
    samples = {
        "bare": [{"ms": 1.0, "tasks": 10.0}, {"ms": 3.0, "tasks": 10.0}, {"ms": 2.0, "tasks": 30.0}],
        "ours": [{"ms": 2.0, "tasks": 1000.0}, {"ms": 6.0, "tasks": 1000.0}, {"ms": 5.0, "tasks": 1000.0}],
    }
    return Table("key", "title", columns, floor, samples)


def test_a_table_has_medians_the_spread_where_asked_for_and_the_ratio_to_its_floor() -> None:
    title, header, _, ours = table("bare").text().splitlines()
    assert title == "title (median of 3)"
    assert header.split() == ["ms", "tasks", "×", "floor"]
    assert ours.split() == ["ours", "5.0", "(2.0–6.0)", "1,000", "2.00"]


def test_a_table_without_a_floor_has_no_ratio() -> None:
    lines = table(None).text().splitlines()
    assert "floor" not in lines[1]
    assert lines[3].split() == ["ours", "5.0", "(2.0–6.0)", "1,000"]
    assert table(None).document()["contestants"]["ours"]["ratio"] is None


def test_the_writes_of_two_releases_stand_side_by_side_with_the_ratio_of_each_round() -> None:
    def sample(cpu: float, wal: float) -> dict[str, float]:
        return {"claim cpu": cpu, "claim wal": wal, "claim updates": 1.0, "claim hot": 1.0, "claim elapsed": 40.0}

    taken = {"before": [sample(20.0, 1000.0), sample(30.0, 1000.0)], "now": [sample(10.0, 400.0), sample(30.0, 400.0)]}
    first, second = writes.side_by_side("claim", taken)
    assert (first["CPU µs before"], first["CPU µs now"], first["CPU ×"], first["WAL ×"]) == (20.0, 10.0, 0.5, 0.4)
    assert second["CPU ×"] == 1.0
    (alone,) = writes.side_by_side("claim", {"now": [sample(10.0, 400.0)]})
    assert "CPU ×" not in alone


def test_a_copy_without_history_has_no_release_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert writes.archived(tmp_path / "before") is None


def test_the_steps_run_over_the_code_that_is_named_first(tmp_path: Path) -> None:
    (tmp_path / "taskflux").symlink_to(ROOT / "taskflux")
    program = "import taskflux, benchmarks.steps; print(taskflux.__file__)"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == str(tmp_path / "taskflux" / "__init__.py")
