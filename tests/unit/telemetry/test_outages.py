"""What a process waits for is logged once and then rarely, and shown for as long as it fails."""

from __future__ import annotations

import logging

import pytest

from taskflux.telemetry import outages
from taskflux.telemetry.outages import RARELY, SHOWN, Link


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(no_outages: None) -> Clock:
    return Clock()


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name == outages.log.name]


def test_a_cause_is_logged_once_and_then_rarely(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    one, other = Link("Kafka", clock), Link("Kafka", clock)
    for _ in range(int(RARELY)):
        one.failed("refused", "nothing listens", "start it")
        other.failed("refused", "nothing listens", "start it")
        clock.now += 1
    assert len(lines(caplog)) == 1
    one.failed("refused", "nothing listens", "start it")
    assert len(lines(caplog)) == 2
    one.failed("login", "the login was refused", "check the password")
    told = caplog.records[-1]
    assert (vars(told)["cause"], vars(told)["error"], vars(told)["do"]) == (
        "login",
        "the login was refused",
        "check the password",
    )
    assert lines(caplog) == [(logging.WARNING, "waiting for Kafka")] * 3


def test_the_end_of_an_outage_is_logged_where_its_beginning_was(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    link = Link("Kafka", clock)
    with caplog.at_level(logging.INFO):
        link.works()
        for _ in range(3):  # it comes and goes
            link.failed("refused", "nothing listens", "start it")
            link.works()
            link.works()
    assert lines(caplog) == [(logging.WARNING, "waiting for Kafka"), (logging.INFO, "Kafka answers again")]


def test_a_failure_is_shown_until_it_works_or_is_no_longer_tried(clock: Clock) -> None:
    one, other = Link("Kafka", clock), Link("Kafka", clock)
    one.failed("refused", "nothing listens", "start it")
    other.failed("refused", "nothing listens", "start it")
    assert outages.waiting(clock) == ["waiting for Kafka: nothing listens"]
    one.works()
    assert outages.waiting(clock) == ["waiting for Kafka: nothing listens"]
    other.works()
    assert outages.waiting(clock) == []
    one.failed("name", "no such name", "check it")
    clock.now += SHOWN
    assert outages.waiting(clock) == []


def test_a_deleted_link_is_not_shown_and_another_one_logs_the_recovery(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    with caplog.at_level(logging.INFO):
        Link("Kafka", clock).failed("refused", "nothing listens", "start it")
        assert outages.waiting(clock) == []
        one, other = Link("Kafka", clock), Link("Kafka", clock)
        one.failed("refused", "nothing listens", "start it")
        other.failed("refused", "nothing listens", "start it")
        one.works()
        assert len(lines(caplog)) == 1
        other.works()
        one.works()
    assert lines(caplog) == [(logging.WARNING, "waiting for Kafka"), (logging.INFO, "Kafka answers again")]


def test_ever_new_sentences_do_not_accumulate(clock: Clock) -> None:
    link = Link("Kafka", clock)
    for number in range(1000):
        link.failed("other", f"error {number}", "read the log")
    assert len(outages._logged) <= 100
