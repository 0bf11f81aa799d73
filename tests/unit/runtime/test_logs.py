from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from handlers.runtime import logs
from handlers.runtime.settings import LogSettings

TASK_ID, TRACE_ID = "0197b3c0-0000-7000-8000-000000000001", "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(autouse=True)
def _the_root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_every_line_of_an_attempt_bears_its_task_and_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(), "process-email")
    token = logs.TASK.set((TASK_ID, TRACE_ID))
    logging.getLogger("some.library").warning("the answer was %s", "no", extra={"error_class": "Transient"})
    logs.TASK.reset(token)
    line = json.loads(capsys.readouterr().err)
    assert (line["task_id"], line["trace_id"]) == (TASK_ID, TRACE_ID)
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "some.library", "the answer was no")
    assert (line["handler"], line["error_class"]) == ("process-email", "Transient")
    assert line["time"]


def test_a_line_outside_of_an_attempt_bears_none(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(), "relay")
    logging.getLogger("x").info("started")
    assert not json.loads(capsys.readouterr().err).keys() & {"task_id", "trace_id"}


def test_a_line_for_a_terminal_says_the_same_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="text"), "relay")
    token = logs.TASK.set((TASK_ID, TRACE_ID))
    logging.getLogger("x").info("retry", extra={"attempt": 2})
    logs.TASK.reset(token)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"retry attempt=2 task_id={TASK_ID} trace_id={TRACE_ID}" in line


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(level="ERROR"), "relay")
    logging.getLogger("x").warning("nothing")
    assert capsys.readouterr().err == ""


def test_a_crash_stands_on_one_line_with_where_it_happened(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(), "relay")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert "test_logs.py" in json.loads(written)["exc_info"]
