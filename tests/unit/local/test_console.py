import io
import json
from pathlib import Path

import pytest

from taskflux.local.console import Console, Echo, LogTail, remark, rotate


def record(**fields: object) -> str:
    return json.dumps({"time": "2026-01-01 00:00:00", "logger": "x", "handler": "relay", **fields})


def test_a_warning_is_shown_in_one_line_with_what_goes_with_it() -> None:
    found = remark(record(level="WARNING", message="waiting for PostgreSQL", error="refused"))
    assert found is not None
    assert (found.text, found.outcome) == ("waiting for PostgreSQL error=refused", None)


def test_of_a_traceback_only_its_last_line_is_shown() -> None:
    trace = "Traceback (most recent call last):\n  File …\nValueError: no"
    found = remark(record(level="ERROR", message="a handler crashed", exc_info=trace))
    assert found is not None
    assert found.text == "a handler crashed: ValueError: no"


def test_a_settled_attempt_is_an_outcome_whatever_its_level() -> None:
    line = record(level="WARNING", message="died", task_id="0199", type="email", attempt=2, error_class="Permanent")
    found = remark(line)
    assert found is not None
    assert (found.text, found.outcome) == ("0199 died attempt=2 error_class=Permanent", "died")


@pytest.mark.parametrize("line", [record(level="INFO", message="started"), "plain text", "{cut off", "", "[]"])
def test_what_nobody_needs_to_see_is_left_in_the_file(line: str) -> None:
    assert remark(line) is None


def test_a_full_disk_is_shown_whoever_says_it() -> None:
    assert remark('2026 PANIC:  could not write to file "pg_wal/x": No space left on device') is not None


def test_a_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    tail = LogTail(file)
    assert tail.read() == []
    file.write_text("one\ntwo\nthr")
    assert tail.read() == ["one", "two"]
    with file.open("a") as more:
        more.write("ee\n")
    assert tail.read() == ["three"]


def test_a_large_file_is_moved_aside_while_its_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskflux.local.console.KEEP_BYTES", 5)
    file = tmp_path / "a.log"
    tail = LogTail(file)
    with file.open("a") as writer:
        print("one two", file=writer, flush=True)
        assert tail.read() == ["one two"]
        tail.keep_small()
        print("three", file=writer, flush=True)
    assert (tmp_path / "a.log.1").read_text() == "one two\n"
    assert tail.read() == ["three"]
    assert file.read_text() == "three\n"


def test_two_former_runs_logs_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    for text in ("first", "second", "third"):
        rotate(file)
        file.write_text(text)
    rotate(file)
    assert not file.exists()
    assert (tmp_path / "a.log.1").read_text() == "third"
    assert (tmp_path / "a.log.2").read_text() == "second"


def test_a_flood_of_outcomes_is_folded_and_a_repeated_warning_is_shown_once(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    done = [record(level="INFO", message="succeeded", task_id=str(n), type="email", attempt=1) for n in range(100)]
    waits = [record(level="WARNING", message="waiting for PostgreSQL")] * 50
    output = io.StringIO()
    shown = Echo(Console(output), {"process-email": file})
    shown.look()
    file.write_text("\n".join([*done, *waits]) + "\n")
    shown.look()
    shown._unfold()
    lines = output.getvalue().splitlines()
    assert sum("waiting for PostgreSQL" in line for line in lines) == 1
    assert any("succeeded ×95" in line for line in lines)
    assert len(lines) == 7


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "on_a_terminal", "elsewhere"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, True),
    ],
)
def test_colours_follow_the_variables_and_the_terminal(
    environment: dict[str, str], on_a_terminal: bool, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for output, coloured in ((Terminal(), on_a_terminal), (io.StringIO(), elsewhere)):
        Console(output).failure("no")
        assert ("\x1b[" in output.getvalue()) == coloured


def test_what_a_persons_own_code_prints_or_logs_is_shown_and_what_libraries_log_is_not(tmp_path: Path) -> None:
    output = io.StringIO()
    file = tmp_path / "first.log"
    echo = Echo(Console(output), {"first": file}, whole=["first"])
    lines = [
        "resizing a.png",
        record(level="INFO", logger="my_app.handlers", message="fetched"),
        record(level="INFO", logger="taskflux.worker.worker", message="started"),
        record(level="INFO", logger="httpx", message="HTTP Request"),
        '{"not": "a log line"}',
    ]
    file.write_text("\n".join(lines) + "\n")
    echo.look()
    assert [line.split(maxsplit=2)[2].strip() for line in output.getvalue().splitlines()] == [
        "resizing a.png",
        "fetched",
        '{"not": "a log line"}',
    ]
