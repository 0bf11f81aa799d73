from __future__ import annotations

import pytest

from taskflux.tasks.errors import (
    LONGEST_REASON,
    Ambiguous,
    Crash,
    Expired,
    InvalidPayload,
    Misconfigured,
    Permanent,
    ProviderError,
    TaskError,
    Transient,
    Unavailable,
    WorkerLost,
    understood,
)


def test_an_exception_as_a_reason_becomes_its_text() -> None:
    assert Transient(ValueError("no answer")).reason == "no answer"  # type: ignore[arg-type]


def test_a_retry_after_may_come_as_text_from_a_header() -> None:
    assert Transient("later", retry_after="30").retry_after == 30.0  # type: ignore[arg-type]


def test_a_retry_after_that_is_not_a_number_raises_at_once() -> None:
    with pytest.raises(ValueError):
        Transient("later", retry_after="Wed, 21 Oct 2026")  # type: ignore[arg-type]


def test_a_handlers_own_error_class_gives_its_name() -> None:
    class CardExpired(Permanent):
        pass

    assert CardExpired("it expired in May").error_class == "CardExpired"


@pytest.mark.parametrize("kind", [InvalidPayload, Expired, WorkerLost])
def test_errors_that_no_later_attempt_can_fix_are_permanent(kind: type[TaskError]) -> None:
    assert issubclass(kind, Permanent)


@pytest.mark.parametrize("kind", [Unavailable, Misconfigured])
def test_errors_that_are_not_the_tasks_fault_are_the_providers(kind: type[TaskError]) -> None:
    assert issubclass(kind, ProviderError)


class Text(str):
    """One that answers wrongly."""

    def __getitem__(self, key: object) -> str:
        raise RuntimeError("not this way")


def test_an_error_is_understood_as_its_base_class_and_keeps_its_name() -> None:
    class OutOfStock(Transient):
        pass

    error = understood(OutOfStock("until May", retry_after=7, progress={"sent": 1}))
    assert type(error) is Transient
    assert (error.error_class, error.reason, error.retry_after, error.progress) == (
        "OutOfStock",
        "until May",
        7.0,
        {"sent": 1},
    )


@pytest.mark.parametrize("kind", [Unavailable, Misconfigured, ProviderError, Ambiguous, Permanent, Expired, WorkerLost])
def test_each_of_our_error_classes_is_understood_as_itself(kind: type[TaskError]) -> None:
    error = understood(kind("why"))
    assert (type(error), error and error.reason, error and error.error_class) == (kind, "why", kind.__name__)


@pytest.mark.parametrize("retry_after", [float("nan"), "soon", object(), None, 10**400])
def test_a_retry_after_that_is_not_a_number_is_ignored(retry_after: object) -> None:
    given = Transient("later")
    given.retry_after = retry_after  # type: ignore[assignment]
    error = understood(given)
    assert isinstance(error, Transient)
    assert error.retry_after is None


def test_a_bare_task_error_is_a_crash_and_any_other_exception_is_not_understood() -> None:
    class Own(TaskError):
        pass

    error = understood(Own("odd"))
    assert (type(error), error and error.reason) == (Crash, "Own: odd")
    assert understood(ValueError("x")) is None
    assert understood(SystemExit(3)) is None


def test_a_reason_is_bounded_plain_text_whatever_is_given_for_it() -> None:
    assert len(Permanent("x" * 10_000_000).reason) == LONGEST_REASON
    assert Permanent(10**5000).reason == "(its text cannot be read: ValueError)"  # type: ignore[arg-type]
    assert type(Permanent(Text("as it is")).reason) is str


def test_a_name_is_bounded_and_printable_whatever_its_class_returns() -> None:
    class Own(Permanent):
        error_class = "a\x00b\ud800\n" + "x" * 1000

    error = understood(Own("why"))
    assert error is not None
    assert error.error_class == "a\ufffdb\ufffd\ufffd" + "x" * 94 + "…"
