"""The tables of the benchmark suite: what is shown beside what."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from math import nan
from pathlib import Path

import pytest

from benchmarks import goals, growth, load, model, writes
from benchmarks.proc import cpu_seconds, family_cpu_seconds
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


def test_a_figure_that_a_contestant_does_not_have_is_a_dash_and_null() -> None:
    found = Table("key", "title", [Column("s", 1), Column("started s")], None, {"peer": [{"s": 1.0, "started s": nan}]})
    assert found.text().splitlines()[2].split() == ["peer", "1.0", "–"]
    assert json.loads(json.dumps(found.document(), allow_nan=False))["contestants"]["peer"]["medians"] == {
        "s": 1.0,
        "started s": None,
    }


def backlog(ours: list[float], cpu: float, fast: list[float] | None = None) -> Table:
    def samples(values: list[float], cpu: float) -> list[dict[str, float]]:
        return [{"tasks/s": value, goals.OWN: cpu, goals.POSTGRES: 30.0} for value in values]

    contestants = {"bare": samples([100.0, 200.0, 400.0], 10.0), "bare, one by one": samples([1.0, 1.0, 1.0], 1.0)}
    contestants |= {"TaskFlux worker": samples(ours, cpu), "TaskFlux in before worker": samples([1.0, 1.0, 1.0], 1.0)}
    if fast is not None:
        contestants["FastStream"] = samples(fast, 250.0)
    return Table("backlog", "", [Column("tasks/s")], "bare", contestants, peers=["FastStream"])


def test_a_goal_is_held_against_the_same_rounds_of_its_system() -> None:
    (row, *_) = goals.document([backlog([50.0, 90.0, 100.0], 50.0, fast=[10.0, 20.0, 40.0])])
    assert row["medians"] == {"floor": 200.0, "TaskFlux": 90.0, "FastStream": 20.0}
    assert row["goals"] == ["≥ 0.4 × floor: reached (0.45)", "≥ 3.5 × FastStream: reached (4.50)"]


def test_a_goal_beside_a_system_that_did_not_run_is_not_measured() -> None:
    row, cpu, _ = goals.document([backlog([30.0, 60.0, 120.0], 50.1)])
    assert row["goals"] == ["≥ 0.4 × floor: not reached (0.30)", "≥ 3.5 × FastStream: not measured"]
    assert cpu["goals"] == ["≤ 50: not reached"]


def test_the_summary_has_a_column_for_each_system_and_a_line_for_each_row_that_was_measured() -> None:
    title, header, *rows = goals.summary([backlog([50.0, 90.0, 100.0], 40.0, fast=[10.0, 20.0, 40.0])]).splitlines()
    assert title.startswith("all systems")
    assert header.split() == ["floor", "FastStream", "TaskFlux", "goals"]
    assert [row.split("  ")[1] for row in rows] == [row.title for row in goals.ROWS if row.key == "backlog"]
    assert goals.summary([]) == ""


def test_of_the_processes_in_memory_the_worker_stands_for_taskflux() -> None:
    contestants: dict[str, list[dict[str, float]]] = {
        "bare": [{}],
        "TaskFlux process-simulated": [{}],
        "TaskFlux relay": [{}],
        "TaskFlux ingest": [{}],
    }
    table = Table("memory", "", [], "bare", contestants)
    found = [goals.system(table, name) for name in contestants]
    assert found == ["floor", "TaskFlux", None, None]


def test_the_cpu_of_a_process_has_that_of_its_children_even_when_they_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(1, flush=True); input()"
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert cpu_seconds(process.pid) < 0.2 < family_cpu_seconds(process.pid)
        process.communicate(b"\n")


async def test_a_load_with_a_rate_begins_so_many_requests_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await load.main(port, "/tasks", "application/json", 8, 0.5, 100.0, b"{}")
    found = json.loads(capsys.readouterr().out)
    assert 40 <= found["answered"] <= 60


def test_growth_shows_each_figure_of_the_grown_database_beside_the_empty_one() -> None:
    taken = {
        "empty": [{"a": 10.0, "b": 0.0}, {"a": 20.0, "b": 1.0}],
        "grown": [{"a": 12.0, "b": 1.0}, {"a": 20.0, "b": 1.0}],
    }
    rows = growth.side_by_side(taken)
    assert rows["a"] == [{"empty": 10.0, "grown": 12.0, "×": 1.2}, {"empty": 20.0, "grown": 20.0, "×": 1.0}]
    assert list(rows) == ["a", "b"]


def test_the_model_of_a_day_follows_from_what_one_task_takes() -> None:
    inputs = model.Inputs(ingest=40.0, worker=50.0, postgres=100.0, kafka=20.0, wal=3000.0, stored=1000.0)
    need = model.Need(864_000_000, inputs)
    assert need.peak == 30_000
    assert need.cores(inputs.postgres) == pytest.approx(5.0)
    assert need.partitions == 12
    assert model.Need(8_640_000_000, inputs).partitions == 36
    cells = ["864,000,000", "30,000", "2.0", "2.5", "5.0", "1.0", "12", "90.0", "2,592", "864"]
    assert need.cells() == cells
    header, line, *rows = model.table(inputs).splitlines()
    assert {row.count("|") for row in (header, line, *rows)} == {len(cells) + 1}
