from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest

from taskflux.telemetry import logs
from taskflux.telemetry.logs import Sampler
from taskflux.telemetry.settings import LogSettings
from taskflux.telemetry.tracing import TRACE
from tests.unit.world import Clock

TASK_ID, TRACE_ID = "0197b3c0-0000-7000-8000-000000000001", "4bf92f3577b34da6a3ce929d0e0e4736"
SECRET = "bob@example.org"


@pytest.fixture(autouse=True)
def _all_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    yield
    root.handlers[:] = before
    root.setLevel(level)
    sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks


@contextmanager
def attempt() -> Iterator[None]:
    task, trace = logs.TASK.set(UUID(TASK_ID)), TRACE.set(f"00-{TRACE_ID}-00f067aa0ba902b7-00")
    yield
    TRACE.reset(trace)
    logs.TASK.reset(task)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def fail() -> None:
    raise ValueError(f"no mailbox {SECRET}")


def test_every_line_of_an_attempt_has_its_task_and_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(), "process-email")
    with attempt():
        logging.getLogger("some.library").warning("the answer was %s", "no", extra={"error_class": "Transient"})
    (line,) = lines(capsys)
    assert (line["task_id"], line["trace_id"]) == (TASK_ID, TRACE_ID)
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "some.library", "the answer was no")
    assert (line["handler"], line["error_class"]) == ("process-email", "Transient")
    assert line["time"]
    assert "span_id" not in line  # spans of this trace are not recorded


def test_a_line_outside_of_an_attempt_has_neither(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(), "relay")
    logging.getLogger("x").info("started")
    assert not lines(capsys)[0].keys() & {"task_id", "trace_id"}


def test_a_line_for_a_terminal_says_the_same_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="text"), "relay")
    with attempt():
        logging.getLogger("x").info("retry", extra={"attempt": 2})
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"retry attempt=2 task_id={TASK_ID} trace_id={TRACE_ID}" in line
    assert "\x1b" not in line


def test_on_a_terminal_lines_are_readable_and_coloured_without_being_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.configure(LogSettings(), "relay")
    logging.getLogger("x").warning("it rains")
    assert "\x1b[33m" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    logs.configure(LogSettings(), "relay")
    logging.getLogger("x").warning("it rains")
    assert capsys.readouterr().err.endswith("WARNING it rains\n")


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(level="ERROR"), "relay")
    logging.getLogger("x").warning("nothing")
    assert capsys.readouterr().err == ""


def test_a_logger_may_have_a_level_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(levels={"some": "DEBUG", "some.loud": "ERROR"}), "relay")
    try:
        logging.getLogger("some.library").debug("told")
        logging.getLogger("some.loud").warning("not told")
        logging.getLogger("other").debug("not told")
    finally:
        logging.getLogger("some").setLevel(logging.NOTSET)
        logging.getLogger("some.loud").setLevel(logging.NOTSET)
    assert [line["message"] for line in lines(capsys)] == ["told"]


def test_the_kafka_client_s_own_lines_are_dropped_unless_its_level_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    client, groups = (logging.getLogger(name) for name in ("aiokafka", "aiokafka.consumer.group_coordinator"))
    level = client.level
    try:
        logs.configure(LogSettings(), "relay")
        assert client.isEnabledFor(logging.ERROR)  # `taskflux.stream.client` hears it
        client.error("Unable connect")
        groups.error("failed")
        assert lines(capsys) == []
        logs.configure(LogSettings(levels={"aiokafka": "ERROR", groups.name: "INFO"}), "relay")
        client.error("Unable connect")
        client.warning("not told")
        groups.info("joined")
        assert [line["message"] for line in lines(capsys)] == ["Unable connect", "joined"]
        logs.configure(LogSettings(levels={"aiokafka": "CRITICAL"}), "relay")
        client.error("not told")
        assert client.isEnabledFor(logging.ERROR)
        assert lines(capsys) == []
    finally:
        client.setLevel(level)
        groups.setLevel(logging.NOTSET)


def test_a_crash_of_an_attempt_is_one_line_with_its_traceback_and_without_its_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(LogSettings(), "relay")
    with attempt():
        try:
            fail()
        except ValueError:
            logging.getLogger("x").exception("it failed")
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    line = json.loads(written)
    assert "test_logs.py" in line["exc_info"]
    assert line["error_class"] == "ValueError"
    assert line["task_id"] == TASK_ID
    assert SECRET not in written


def test_without_a_task_only_the_place_is_logged_not_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(), "relay")
    try:
        fail()
    except ValueError:
        logging.getLogger("x").exception("it failed")
    (line,) = lines(capsys)
    assert "exc_info" not in line
    assert line["error_class"] == "ValueError"
    assert line["raised_at"].startswith("test_logs.py:")
    assert SECRET not in str(line)


def test_errors_that_python_would_print_are_lines_like_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(), "relay")
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = warnings.showwarning  # what catch_warnings would put aside
        warnings.warn_explicit(f"who is {SECRET}?", UserWarning, "somewhere.py", 7)
    try:
        fail()
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    found = lines(capsys)
    assert [line["message"] for line in found] == [
        "a thread failed",
        "UserWarning at somewhere.py:7",
        "the process fails",
    ]
    assert SECRET not in str(found)


async def test_an_error_that_no_code_awaits_is_logged_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(), "relay")
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.left_over)
    try:
        loop.call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    (line,) = lines(capsys)
    assert (line["message"], line["error_class"]) == ("an error that no code awaited", "ValueError")
    assert SECRET not in str(line)


async def test_lines_about_a_batch_do_not_belong_to_the_task_that_began_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from taskflux.store.errors import StoreUnavailable
    from taskflux.store.group_commit import GroupCommit

    async def write(items: object) -> list[None]:
        raise RuntimeError(f"a fault, at {SECRET}")

    logs.configure(LogSettings(), "ingest")
    commit: GroupCommit[Item, None] = GroupCommit(write)
    with attempt():
        answers = await asyncio.gather(
            *(commit.submit(Item(UUID(int=number)), number) for number in range(5)), return_exceptions=True
        )
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    found = lines(capsys)
    assert sum(line["items"] for line in found) == 5
    for line in found:
        assert line["message"] == "a batch failed"
        assert line["task_ids"][0].startswith("00000000")
        assert "write" in line["exc_info"]
        assert "task_id" not in line
    assert SECRET not in str(found)


class Mute(Exception):
    """An error whose class answers nothing about it."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)

    def __str__(self) -> str:
        raise RuntimeError(SECRET)


async def test_an_error_of_a_broken_class_is_logged_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(), "relay")
    logs.left_over(asyncio.get_running_loop(), {"exception": Mute(), "message": "never retrieved"})
    with attempt():
        logging.getLogger("x").error("it failed", exc_info=logs.about(Mute()))
    assert logs.frames(Mute()) == "Mute (its traceback cannot be read: SystemExit)"
    left, failed = lines(capsys)
    assert (left["error_class"], left["raised_at"]) == ("Mute", "(cannot be read: SystemExit)")
    assert (failed["error_class"], failed["exc_info"]) == ("Mute", "Mute (its traceback cannot be read: SystemExit)")


def test_of_a_long_traceback_and_of_many_causes_the_nearest_are_logged() -> None:
    def even(depth: int) -> None:
        odd(depth - 1) if depth else fail()

    def odd(depth: int) -> None:
        even(depth - 1) if depth else fail()

    error: BaseException | None = None
    for _ in range(100):
        try:
            try:
                even(400)
            except ValueError as found:
                raise LookupError(SECRET) from (error or found)
        except LookupError as found:
            error = found
    assert error is not None
    told = logs.frames(error)
    assert told.splitlines().count("LookupError") == 10
    assert len(told) < 200_000


class Item:
    def __init__(self, name: UUID) -> None:
        self.id = name


class Flood:
    """Lines of some kinds, logged by a sampler of this rate at the seconds that the test gives."""

    def __init__(self, rate: int, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self.caplog, self.clock = caplog, Clock(0.0)
        self.sampler = Sampler(rate, self.clock)

    def tell(self, kind: str, *seconds: float, **about: object) -> list[dict[str, Any]]:
        """The lines that were written of those of these seconds."""
        self.caplog.clear()
        for self.clock.now in seconds:
            self.sampler.log(logging.getLogger("flood"), logging.INFO, kind, kind, about)
        return [vars(record) for record in self.caplog.records]


def test_below_its_rate_every_line_is_written(caplog: pytest.LogCaptureFixture) -> None:
    written = Flood(3, caplog).tell("succeeded", 0.0, 0.4, 0.8, 1.0, 1.1, 5.0, type="email", error_class=None)
    assert [line["type"] for line in written] == ["email"] * 6
    assert not any("omitted" in line or "error_class" in line for line in written)


def test_above_its_rate_lines_are_omitted_until_the_next_second_and_then_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flood = Flood(2, caplog)
    assert len(flood.tell("succeeded", 10.0, 10.1, 10.2, 10.3, 10.4)) == 2
    [first, second] = flood.tell("succeeded", 11.0, 11.1)
    assert first["omitted"] == 3
    assert "omitted" not in second


def test_omitted_lines_are_counted_by_the_next_line_of_their_kind(caplog: pytest.LogCaptureFixture) -> None:
    flood = Flood(1, caplog)
    assert [len(flood.tell(kind, 0.0)) for kind in ("succeeded", "retry", "retry")] == [1, 0, 0]
    assert "omitted" not in flood.tell("succeeded", 1.0)[0]
    assert flood.tell("retry", 2.0)[0]["omitted"] == 2


def test_a_rate_of_zero_omits_all_lines(caplog: pytest.LogCaptureFixture) -> None:
    assert Flood(0, caplog).tell("succeeded", 0.0) == []


def test_lines_below_the_level_are_neither_written_nor_counted(caplog: pytest.LogCaptureFixture) -> None:
    flood = Flood(1, caplog)
    caplog.set_level(logging.WARNING)
    assert flood.tell("succeeded", 0.0, 0.1) == []
    caplog.set_level(logging.INFO)
    assert "omitted" not in flood.tell("succeeded", 0.2)[0]


# Reasons --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("550 5.1.1 <ada@example.org>: User unknown", "550 5.1.1 <(address)>: User unknown"),
        ("421-4.7.0 wait 421 4.7.0 later", "421-4.7.0 wait 421 4.7.0 later"),
        ("mailto:ada@example.org, to=ada.l@example.org", "mailto:(address), to=(address)"),
        ('"Ada L"@example.org', "(text)@example.org"),
        ("ada@[IPv6:::1]", "(address)"),
        ("ADA＠example.org", "(address)"),
        ("KeyError: 'Ada Lovelace'", "KeyError: (text)"),
        ("'O'Brien' is unknown", "(text) is unknown"),
        ("the worker's lease isn't its own", "the worker's lease isn't its own"),
        ('it answered {"to": "Ada', "it answered {(text): (text)"),
        ("“Ada” «Ada» ‘Ada’ `Ada`", "(text) (text) (text) (text)"),
        ("+91 98765 43210 is busy", "(number) is busy"),
        ("(555) 123-4567 or 918812345678", "(number) or (number)"),
        ("code 123456", "code (number)"),
        ("it was cut off after 30.5 s, 12345 bytes", "it was cut off after 30.5 s, 12345 bytes"),
        ("https://ada:secret@api.example.org/users/ada?x=1 answered 500", "https://api.example.org/… answered 500"),
        ("https://api.example.org answered 500", "https://api.example.org answered 500"),
        ("0190a1b2-0000-7000-8000-000000000001 is missing", "0190a1b2-0000-7000-8000-000000000001 is missing"),
        ("two\nlines\t here", "two lines here"),
    ],
)
def test_a_reason_is_logged_without_what_looks_like_personal_data(said: str, logged: str) -> None:
    assert logs.scrubbed(said) == logged


SENT = (
    json.dumps({"subject": "Dear Zoë, your order", "to": ["ada@people.example"], "n": 4711, "l": [{"": "李 O'Brien"}]}),
    json.dumps({"who": "Lovelace", "url": "http://shop.example"}),
    None,
)


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("554 5.6.0 Dear Zoë, your order is not wanted", "554 5.6.0 (sent), your (sent) is not wanted"),
        ("no mailbox for ZOË LOVELACE-Smith", "no mailbox for (sent)-Smith"),
        ("user ada, account 4711, customer 李, o'brien", "user (sent), account (sent), customer (sent), o'(sent)"),
        ("it was cut: Lovel", "it was cut: (sent)"),
        ("the subject is missing", "the subject is missing"),  # a field's name
        ("http://shop.example/ada is down", "http://(sent)/… is down"),
        ("http://api.example/ada is down", "http://api.example/… is down"),
    ],
)
def test_a_reason_is_logged_without_the_tasks_data(said: str, logged: str) -> None:
    assert logs.scrubbed(said, SENT) == logged


@pytest.mark.parametrize("sent", ["no JSON: ada", '"ada"', "[" * 100_000 + '"ada"', '{"a": "\\ud800 ada"}'])
def test_the_tasks_data_is_found_in_any_text_that_was_sent(sent: str) -> None:
    assert logs.scrubbed("ada", [sent]) == "(sent)"


@pytest.mark.parametrize("spaces", [" ", "   "])
def test_of_a_long_reason_whole_words_are_logged(spaces: str) -> None:
    head = spaces.join(["word"] * (490 // (4 + len(spaces))))
    assert logs.scrubbed(f"{head}{spaces}somebody.private@example.org") == " ".join([*head.split(), "…"])
    assert logs.scrubbed("somebody.private" * 40 + "@example.org") == "…"


@pytest.mark.parametrize("part", ["x.", "1", "'", '"', "a:/", "://", "a@", "1 ", "(", "+"])
def test_no_reason_takes_long_to_scrub(part: str) -> None:
    began = time.process_time()
    for _ in range(10):
        logs.scrubbed(part * 5000)
        logs.scrubbed(" ".join([part * 8] * 1000))
    assert time.process_time() - began < 1


def test_the_words_of_a_text_in_ascii_are_those_of_any_other() -> None:
    text = "".join(map(chr, range(128))) + " O'Brien\x00snake_case\x1cA12"
    assert logs.scrubbed("brien snake case A12 xyz", [json.dumps(text)]) == "(sent) xyz"
    assert logs.scrubbed("brien snake case A12 xyz", [json.dumps(f"{text} é")]) == "(sent) xyz"


def test_reasons_can_be_left_out() -> None:
    logs.configure(LogSettings(reasons=False), "process-email")
    assert logs.reason("busy", ()) is None
    logs.configure(LogSettings(), "process-email")
    assert logs.reason("busy", ()) == "busy"
