from __future__ import annotations

import re
from pathlib import Path

import pytest

from taskflux.store.statements import parse
from tests.mutations.listed import MUTATIONS
from tests.mutations.mutant import Copy, DoesNotApply, Mutation, Verdict

ROOT = Path(__file__).parents[2]
STATEMENTS = [each for each in MUTATIONS if each.path.endswith(".sql") and "/migrations/" not in each.path]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.wrong)
def test_each_listed_change_still_applies_and_names_tests_that_exist(mutation: Mutation) -> None:
    text = (ROOT / mutation.path).read_text(encoding="utf-8")
    assert mutation.changed(text) != text
    for test in mutation.tests:
        file, *names = test.split("::")
        written = (ROOT / file).read_text(encoding="utf-8")
        for name in names:
            assert re.search(
                rf"^ *(?:async def|def|class) {re.escape(name.partition('[')[0])}\b", written, re.MULTILINE
            )


@pytest.mark.parametrize("mutation", STATEMENTS, ids=lambda mutation: mutation.wrong)
def test_a_changed_statement_takes_the_parameters_that_it_took(mutation: Mutation) -> None:
    """Otherwise every call of it fails, whatever the rule, and any test at all notices that."""
    text = (ROOT / mutation.path).read_text(encoding="utf-8")
    assert parameters(mutation.changed(text)) == parameters(text)


def parameters(text: str) -> dict[str, set[str]]:
    return {name: set(statement.parameters) for name, statement in parse(text).items()}


def tiny(root: Path) -> Mutation:
    (root / "sums.py").write_text("def double(x: int) -> int:\n    return x * 2\n", encoding="utf-8")
    (root / "test_sums.py").write_text(
        "from sums import double\n\ndef test_three() -> None:\n    assert double(3) == 6\n"
        "\ndef test_nothing() -> None:\n    assert True\n",
        encoding="utf-8",
    )
    return Mutation("it adds", "sums.py", "x * 2", "x + 2", ("test_sums.py",))


def test_a_change_is_noticed_when_a_test_fails_and_is_taken_back_after(tmp_path: Path) -> None:
    mutation = tiny(tmp_path)
    assert Copy(tmp_path).try_out(mutation)[0] is Verdict.NOTICED
    assert "x * 2" in (tmp_path / "sums.py").read_text(encoding="utf-8")


def test_a_change_that_no_test_notices_has_survived(tmp_path: Path) -> None:
    mutation = tiny(tmp_path)
    unrelated = Mutation(mutation.wrong, mutation.path, mutation.old, mutation.new, ("test_sums.py::test_nothing",))
    assert Copy(tmp_path).try_out(unrelated)[0] is Verdict.SURVIVED


def test_tests_that_do_not_run_have_noticed_nothing(tmp_path: Path) -> None:
    mutation = tiny(tmp_path)
    missing = Mutation(mutation.wrong, mutation.path, mutation.old, mutation.new, ("test_sums.py::test_of_no_name",))
    assert Copy(tmp_path).try_out(missing)[0] is Verdict.BROKEN


@pytest.mark.parametrize("text", ["return 2", "x * 2 + x * 2"])
def test_a_change_applies_where_its_text_stands_exactly_once(text: str) -> None:
    mutation = Mutation("it adds", "sums.py", "x * 2", "x + 2", ())
    with pytest.raises(DoesNotApply, match=r"sums\.py"):
        mutation.changed(text)
