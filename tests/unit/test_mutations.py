from __future__ import annotations

import os
import re
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from taskflux.store.database import parse
from tests.mutations.__main__ import main
from tests.mutations.listed import MUTATIONS
from tests.mutations.mutant import Copy, DoesNotApply, Mutation, Stopped, Verdict

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
    assert Copy(tmp_path).try_out(mutation).verdict is Verdict.NOTICED
    assert "x * 2" in (tmp_path / "sums.py").read_text(encoding="utf-8")


def test_a_change_that_no_test_notices_has_survived(tmp_path: Path) -> None:
    mutation = tiny(tmp_path)
    unrelated = Mutation(mutation.wrong, mutation.path, mutation.old, mutation.new, ("test_sums.py::test_nothing",))
    assert Copy(tmp_path).try_out(unrelated).verdict is Verdict.SURVIVED


@pytest.mark.slow
def test_tests_that_do_not_run_have_noticed_nothing(tmp_path: Path) -> None:
    mutation = tiny(tmp_path)
    missing = Mutation(mutation.wrong, mutation.path, mutation.old, mutation.new, ("test_sums.py::test_of_no_name",))
    assert Copy(tmp_path).try_out(missing).verdict is Verdict.BROKEN


SET_UP = """
import pytest
from sums import double

@pytest.fixture
def six() -> int:
    assert double(3) == 6
    return 6

def test_six(six: int) -> None:
    assert six == 6
"""
TAKEN_DOWN = """
import pytest
from collections.abc import Iterator
from sums import double

@pytest.fixture
def six() -> Iterator[int]:
    yield 6
    assert double(3) == 6

def test_six(six: int) -> None:
    assert six == 6
"""
FAILS_LATER = """
from sums import double

def test_twelve() -> None:
    assert double(6) == 12
"""
FAILS_ANYWAY = """
def test_six() -> None:
    assert 3 + 3 == 5
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "verdict", "reason"),
    [
        (SET_UP, Verdict.BROKEN, "the tests did not run"),
        (TAKEN_DOWN, Verdict.NOTICED, "test_sums.py::test_six"),
        (FAILS_LATER + FAILS_ANYWAY, Verdict.NOTICED, "test_sums.py::test_twelve"),
        (FAILS_ANYWAY, Verdict.BROKEN, "without the change too, a failure of test_sums.py::test_six"),
    ],
    ids=["cannot be set up", "fails when it is taken down", "another one fails anyway", "fails anyway"],
)
def test_what_notices_is_a_test_that_runs_and_passes_without_the_change(
    tmp_path: Path, written: str, verdict: Verdict, reason: str
) -> None:
    mutation = tiny(tmp_path)
    (tmp_path / "test_sums.py").write_text(written, encoding="utf-8")
    copy = Copy(tmp_path)
    (outcome,) = copy.confirmed([copy.try_out(mutation)])
    assert (outcome.verdict, outcome.reason) == (verdict, reason)


WAITS = """
import os, subprocess, sys, time
from pathlib import Path

def test_for_ever() -> None:
    try:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path("pids.new").write_text(f"{os.getpid()} {child.pid}", encoding="utf-8")
        Path("pids.new").rename("pids")
        time.sleep(600)
    finally:
        child.wait()
"""


@pytest.mark.slow
def test_tests_that_are_stopped_end_with_all_that_they_started(tmp_path: Path) -> None:
    (tmp_path / "test_waits.py").write_text(WAITS, encoding="utf-8")
    stop, pids = threading.Event(), tmp_path / "pids"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(Copy(tmp_path, stop).run, ("test_waits.py",))
        while not running.done() and not pids.exists():
            time.sleep(0.05)
        stop.set()
        with pytest.raises(Stopped):
            running.result()
    left = pids.read_text(encoding="utf-8").split()
    while any(Path("/proc", pid).exists() for pid in left):  # until whoever inherits them has noticed their end
        time.sleep(0.05)


@pytest.mark.slow
def test_tests_have_a_time_in_which_to_be_done(tmp_path: Path) -> None:
    (tmp_path / "test_waits.py").write_text(WAITS, encoding="utf-8")
    assert Copy(tmp_path).run(("test_waits.py",), 0.0).code is None


LEAVES = """
import subprocess, sys
from pathlib import Path

def test_leaves_a_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path("pids").write_text(str(child.pid), encoding="utf-8")
    child.returncode = 0  # no warning about it
"""


@pytest.mark.slow
def test_what_tests_leave_running_ends_with_them(tmp_path: Path) -> None:
    (tmp_path / "test_leaves.py").write_text(LEAVES, encoding="utf-8")
    assert Copy(tmp_path).run(("test_leaves.py",)).code == 0
    process = int((tmp_path / "pids").read_text(encoding="utf-8"))
    with suppress(ProcessLookupError):
        ended, _, _ = select.select([os.pidfd_open(process)], [], [], 20)
        assert ended


def test_a_copy_that_is_stopped_begins_nothing(tmp_path: Path) -> None:
    mutation, stop = tiny(tmp_path), threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        Copy(tmp_path, stop).try_out(mutation)
    assert "x * 2" in (tmp_path / "sums.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("wrong", [["--part", "0"], ["--parts", "4", "--part", "4"], ["--part", "-1"]])
def test_a_part_is_one_of_so_many(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*wrong, "--list"])
    assert "--part K" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["return 2", "x * 2 + x * 2"])
def test_a_change_applies_where_its_text_stands_exactly_once(text: str) -> None:
    mutation = Mutation("it adds", "sums.py", "x * 2", "x + 2", ())
    with pytest.raises(DoesNotApply, match=r"sums\.py"):
        mutation.changed(text)
