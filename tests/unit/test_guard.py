"""The guard of what a task costs: its arithmetic, and what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks import callgrind, guard
from benchmarks.guard import ALL, BATCH, INSTRUCTIONS, POSTGRES, REFERENCE, SINGLE, WORKER, Costs, Verdict
from taskflux.local.console import Trouble

CLAIM = "buffers by claim"
WAL = "WAL bytes by settle"


def costs(worker: float = 1000.0, reference: float = 100.0, **postgres: float) -> Costs:
    named = {cost.replace("_", " "): value for cost, value in postgres.items()}
    return {REFERENCE: {INSTRUCTIONS: reference}, WORKER: {INSTRUCTIONS: worker, CLAIM: 10.0, WAL: 900.0, **named}}


def document() -> dict[str, Costs]:
    expected = costs()
    counted = {path: {INSTRUCTIONS: each[INSTRUCTIONS]} for path, each in expected.items()}
    return {POSTGRES: {WORKER: {CLAIM: 10.0, WAL: 900.0}}, guard.here(): counted}


def failed(found: Costs) -> list[str]:
    return [each.cost for each in guard.verdicts(found, document()) if not each.passed]


@pytest.mark.parametrize(
    ("found", "cost"),
    [
        (costs(worker=1300.0), INSTRUCTIONS),
        (costs(buffers_by_claim=13.0), CLAIM),
        (costs(WAL_bytes_by_settle=1170.0), WAL),
    ],
)
def test_thirty_percent_more_of_any_cost_fails(found: Costs, cost: str) -> None:
    assert failed(found) == [cost]


def test_what_differs_by_some_percent_passes() -> None:
    assert failed(costs(worker=1080.0, buffers_by_claim=10.9, WAL_bytes_by_settle=960.0)) == []
    assert failed(costs(worker=500.0)) == []


def test_instructions_are_scaled_to_the_build_of_python_and_the_work_of_postgresql_is_not() -> None:
    assert failed(costs(worker=1150.0, reference=115.0)) == []
    assert failed(costs(worker=1300.0, reference=115.0)) == []
    assert failed(costs(worker=1300.0, reference=100.0)) == [INSTRUCTIONS]
    assert failed(costs(worker=1000.0, reference=80.0)) == [INSTRUCTIONS]
    assert failed(costs(buffers_by_claim=13.0, worker=1150.0, reference=115.0)) == [CLAIM]


def test_a_statement_that_is_new_counts_among_all_of_them() -> None:
    expected = document()
    expected[POSTGRES][WORKER][f"buffers by {ALL}"] = 20.0
    found = costs(buffers_by_held=6.0, buffers_by_all_statements=26.0)
    (raised,) = (each for each in guard.verdicts(found, expected) if not each.passed)
    assert str(raised) == "worker: 26.0 buffers by all statements a task, 20.0 expected: +30.0%, the limit is +20%"


def test_a_path_that_is_not_expected_is_not_compared() -> None:
    with pytest.raises(Trouble, match=r"guard\.json has nothing for relay: run make bench-guard ARGS=--write"):
        guard.verdicts({**costs(), "relay": {INSTRUCTIONS: 1.0}}, document())


def test_a_verdict_names_the_process_what_was_measured_and_what_is_expected() -> None:
    raised = Verdict(WORKER, INSTRUCTIONS, 364_000.0, 280_000.0)
    assert str(raised) == "worker: 364,000 instructions a task, 280,000 expected: +30.0%, the limit is +20%"
    same = Verdict(SINGLE, CLAIM, 9.06, 9.06)
    assert str(same) == "ingest, single submits: 9.1 buffers by claim a task, 9.1 expected: +0.0%"
    assert str(Verdict(BATCH, INSTRUCTIONS, 150.0, 200.0)).endswith("expected: -25.0%, cheaper")


def test_the_advice_says_how_to_raise_what_is_expected_and_for_which_processes() -> None:
    raised, cheaper, same = (Verdict(WORKER, INSTRUCTIONS, each, 100.0) for each in (130.0, 70.0, 100.0))
    said = " ".join(guard.advice([raised, same]))
    assert said.startswith("a task costs more than +20% of what is expected: worker. ")
    assert "make bench-guard ARGS=--write" in said
    assert "benchmarks/guard.json" in said
    assert guard.advice([same]) == []
    assert "has become cheaper: make bench-guard ARGS=--write" in " ".join(guard.advice([cheaper, same]))


def measuring(*found: Costs) -> tuple[Callable[[], Awaitable[Costs]], list[Costs]]:
    left = list(found)

    async def measure() -> Costs:
        return left.pop(0)

    return measure, left


async def test_what_costs_too_much_is_measured_once_more_and_the_least_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure, left = measuring(costs(worker=1300.0), costs(worker=1010.0, buffers_by_claim=13.0), costs())
    assert await guard.guarded(document(), measure)
    assert len(left) == 1
    assert "measured again:" in capsys.readouterr().out
    measure, left = measuring(costs(worker=1300.0), costs(worker=1290.0), costs())
    assert not await guard.guarded(document(), measure)
    assert len(left) == 1
    assert "1,290 instructions a task, 1,000 expected: +29.0%, the limit is +20%" in capsys.readouterr().out


async def test_what_passes_is_measured_once() -> None:
    measure, left = measuring(costs(), costs())
    assert await guard.guarded(document(), measure)
    assert len(left) == 1


async def test_of_the_rounds_after_the_first_the_least_of_each_cost_counts() -> None:
    taken = iter([{"a": 1.0, "b": 1.0}, {"a": 5.0, "b": 3.0}, {"a": 4.0, "b": 4.0}, {"a": 6.0, "b": 5.0, "c": 1.0}])

    async def one() -> dict[str, float]:
        return next(taken)

    assert await guard.rounds(one) == {"a": 4.0, "b": 3.0}


def test_writing_replaces_this_python_and_postgresql_and_keeps_the_others() -> None:
    other = {"Python 3.99 on x86_64": {REFERENCE: {INSTRUCTIONS: 1.0}}}
    made = guard.written(costs(worker=1234.4, buffers_by_held=0.1), {**document(), **other})
    assert made["Python 3.99 on x86_64"] == other["Python 3.99 on x86_64"]
    assert made[guard.here()] == {REFERENCE: {INSTRUCTIONS: 100.0}, WORKER: {INSTRUCTIONS: 1234.0}}
    assert made[POSTGRES] == {WORKER: {CLAIM: 10.0, WAL: 900.0}}


def test_a_statement_is_known_by_its_words_whatever_postgresql_has_made_of_its_constants() -> None:
    claim, beat = (guard.FILES[0][name].text for name in ("claim", "beat"))
    assert guard.statement(claim.replace("'scheduled'", "$99").replace("epoch", "$98")) == "claim"
    assert guard.statement(claim + " , (SELECT count(*) FROM tasks WHERE version = $7) AS added") == "claim"
    assert guard.statement(beat) == "beat"
    assert guard.statement("WITH RECURSIVE typeinfo_tree(oid, ns, name, kind) AS (SELECT ti.oid) SELECT 1") == "others"


def test_the_total_of_a_dump_is_read() -> None:
    assert callgrind.total("events: Ir\nsummary: 12\n\n0 12\n") == 12
    assert callgrind.total("events: Ir\n\n0 12\ntotals: 120\n") == 120
    with pytest.raises(Trouble, match="no total"):
        callgrind.total("events: Ir\n")


def test_without_valgrind_the_guard_is_skipped_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["guard"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert guard.main() == 75
    assert capsys.readouterr().out.splitlines()[-1].startswith("valgrind is missing: install it")


def test_on_a_python_without_expected_figures_the_guard_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["guard"])
    monkeypatch.setattr(callgrind, "missing", lambda: None)
    monkeypatch.setattr(guard, "here", lambda: "Python 3.99 on abacus")
    assert guard.main() == 75
    assert capsys.readouterr().out.startswith("guard.json has nothing for Python 3.99 on abacus: run make")


def test_the_instructions_of_a_program_are_the_same_each_time(tmp_path: Path) -> None:
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is missing")
    program = ["-S", "-c", "import sys; sum(range(int(sys.argv[1])))"]
    first, again, more = (callgrind.counted([*program, count], tmp_path) for count in ("100", "100", "50000"))
    assert abs(first - again) < first / 1000
    assert more > first + 50_000
    with pytest.raises(Trouble, match="failed"):
        callgrind.counted(["-c", "raise SystemExit(3)"], tmp_path)


def test_guard_json_has_every_path_of_python_3_11() -> None:
    expected = json.loads(guard.EXPECTED.read_text())
    paths = [WORKER, SINGLE, BATCH]
    assert list(expected["Python 3.11 on x86_64"]) == [REFERENCE, *paths]
    assert {path: {cost.rpartition(" ")[2] for cost in expected[POSTGRES][path]} for path in paths} == {
        WORKER: {"claim", "settle", "statements"},
        SINGLE: {"insert_tasks", "confirm", "statements"},
        BATCH: {"insert_tasks", "confirm", "statements"},
    }
