from __future__ import annotations

import pytest

from taskflux.tasks.errors import (
    Expired,
    InvalidPayload,
    Misconfigured,
    Permanent,
    ProviderError,
    TaskError,
    Transient,
    Unavailable,
    WorkerLost,
)


def test_an_exception_as_a_reason_becomes_its_text() -> None:
    assert Transient(ValueError("no answer")).reason == "no answer"  # type: ignore[arg-type]


def test_a_retry_after_may_come_as_text_from_a_header() -> None:
    assert Transient("later", retry_after="30").retry_after == 30.0  # type: ignore[arg-type]


def test_a_retry_after_that_is_no_number_is_the_fault_of_whoever_raises_it() -> None:
    with pytest.raises(ValueError):
        Transient("later", retry_after="Wed, 21 Oct 2026")  # type: ignore[arg-type]


def test_a_kind_of_a_handlers_own_is_named_by_its_class() -> None:
    class CardExpired(Permanent):
        pass

    assert CardExpired("it expired in May").error_class == "CardExpired"


@pytest.mark.parametrize("kind", [InvalidPayload, Expired, WorkerLost])
def test_what_no_later_attempt_can_mend_is_permanent(kind: type[TaskError]) -> None:
    assert issubclass(kind, Permanent)


@pytest.mark.parametrize("kind", [Unavailable, Misconfigured])
def test_what_is_not_the_tasks_fault_is_the_providers(kind: type[TaskError]) -> None:
    assert issubclass(kind, ProviderError)
