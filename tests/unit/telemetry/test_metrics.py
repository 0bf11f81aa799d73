from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from taskflux.providers.provider import CRASHED, OUTCOMES, SUCCEEDED
from taskflux.stream.envelope import MALFORMED, PoisonClass
from taskflux.tasks import errors
from taskflux.tasks.errors import Permanent
from taskflux.telemetry import metrics
from taskflux.telemetry.metrics import DECLARED

HANDLERS = Path(metrics.__file__).parents[1]


def test_every_metric_has_our_prefix_a_sentence_and_a_unit_that_prometheus_knows() -> None:
    for name, declared in DECLARED.items():
        assert re.fullmatch(r"taskflux_[a-z_]+", name)
        assert declared.sentence.endswith(".") or "version" in declared.sentence
        assert (declared.kind == "counter") == name.endswith("_total")
        assert not name.endswith(("_ms", "_milliseconds", "_minutes"))
        assert declared.by


def test_every_label_says_what_its_values_are() -> None:
    assert all(label.values or label.description for declared in DECLARED.values() for label in declared.labels)


def test_nothing_that_names_a_task_or_a_person_is_a_label() -> None:
    names = {label.name for declared in DECLARED.values() for label in declared.labels}
    assert names <= {
        "type", "outcome", "status", "state", "method", "route", "channel", "error_class", "counted", "error", "how",
        "provider", "topic", "group", "statement", "version", "peer", "server",
    }  # fmt: skip


def test_the_errors_of_tasks_and_records_are_known() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.TaskError)]
    assert {each.__name__ for each in kinds} - {"TaskError", "ProviderError"} == set(metrics.TASK_ERRORS)
    assert {*PoisonClass, MALFORMED, "Unknown"} == set(metrics.RECORD_ERRORS)
    assert {each.__name__ for each in OUTCOMES} | {SUCCEEDED, CRASHED} == set(metrics.CALLED)


@pytest.fixture
def no_own_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_own_classes", set())


def test_an_applications_own_error_keeps_its_name(no_own_classes: None) -> None:
    class MailboxFull(Permanent):
        pass

    assert metrics.error_class(MailboxFull("…").error_class) == "MailboxFull"
    assert metrics.error_class("Permanent") == "Permanent"


@pytest.mark.parametrize(
    "text", ["", "user@example.org", "019a2b3c-0000-7000-8000-000000000000", "no such user", "Ä", "A" * 51, "a", "12"]
)
def test_a_name_that_does_not_look_like_a_class_is_not_a_label(text: str, no_own_classes: None) -> None:
    assert metrics.error_class(text) == "other"


def test_the_number_of_foreign_class_names_is_limited(no_own_classes: None) -> None:
    names = [f"Own{number}" for number in range(60)]
    assert [metrics.error_class(name) for name in names] == [*names[:50], *["other"] * 10]
    assert metrics.error_class("Own7") == "Own7"
    assert metrics.error_class("Crash") == "Crash"


def test_no_metric_is_used_past_its_labels() -> None:
    """One that never went through `labels` is not shown, and a process that counts nothing would count it."""
    known = {name for name, value in vars(metrics).items() if hasattr(value, "labels") and hasattr(value, "zeros")}
    used = {"inc", "dec", "set", "observe", "observe_all", "follow"}
    found = [
        f"{path.name}:{node.lineno}"
        for path in HANDLERS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in used
        and isinstance(node.value, ast.Attribute)
        and node.value.attr in known
    ]
    assert known
    assert found == []
