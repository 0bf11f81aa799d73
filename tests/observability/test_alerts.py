"""Every alert, by `promtool test rules`: each of its cases is held against all alerts, so that no other fires."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.alerts import CASES, Rule, rules, write_rules
from tests.observability.tools import program

RULES = rules()
CASE_FILES = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted(CASES.glob("*.yaml"))}


@dataclass(frozen=True)
class Case:
    """Series, and which alerts are to fire when; `says`: what the one that fires first is to say."""

    alert: str
    told: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.alert}: {self.told['name']}"

    def fires(self) -> bool:
        return any(self.alert in check["firing"] for check in self.told["checks"])


ALL = [Case(alert, told) for alert, cases in CASE_FILES.items() for told in cases]


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    assert CASE_FILES.keys() == RULES.keys()
    for alert in RULES:
        fires = [case.fires() for case in ALL if case.alert == alert]
        assert True in fires, f"{alert}: no case fires"
        assert False in fires, f"{alert}: every case fires"
        assert any("says" in check for case in ALL if case.alert == alert for check in case.told["checks"]), alert


@pytest.mark.parametrize("case", ALL, ids=str)
def test_it_fires_as_its_case_says_and_no_other_alert_fires(case: Case, tmp_path: Path) -> None:
    run(case, RULES, tmp_path)


def test_a_case_fails_when_its_alert_is_another(tmp_path: Path) -> None:
    case = next(case for case in ALL if case.alert == "TaskFluxOldestWaiting")
    harder = {**RULES["TaskFluxOldestWaiting"], "for": "1h"}
    with pytest.raises(AssertionError, match="FAILED"):
        run(case, {**RULES, "TaskFluxOldestWaiting": harder}, tmp_path)
    renamed = {**RULES["TaskFluxCircuitOpen"], "expr": RULES["TaskFluxOldestWaiting"]["expr"]}
    with pytest.raises(AssertionError, match="FAILED"):
        run(case, {**RULES, "TaskFluxCircuitOpen": renamed}, tmp_path)


def run(case: Case, held_against: dict[str, Rule], directory: Path) -> None:
    """Hold a case's checks against the alerts: what they say only where the case says so."""
    checks = case.told["checks"]
    spoken = [check for check in checks if "says" in check]
    _promtool(case, {name: _silent(rule) for name, rule in held_against.items()}, checks, directory)
    if spoken:
        _promtool(case, held_against, spoken, directory)


def _promtool(case: Case, tested: dict[str, Rule], checks: list[dict[str, Any]], directory: Path) -> None:
    write_rules(tested, directory / "rules.yaml")
    interval = case.told.get("interval", "1m")
    test = {
        "interval": interval,
        "input_series": [{"series": name, "values": values} for name, values in case.told["series"].items()],
        "alert_rule_test": [_expected(check, name, rule) for check in checks for name, rule in tested.items()],
    }
    assert all(check["firing"].keys() <= tested.keys() for check in checks)
    assert all(isinstance(values, str) for values in case.told["series"].values()), "YAML reads a bare 0x30 as 48"
    file = directory / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": interval, "tests": [test]}))
    command = [program("promtool"), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{case}:\n{done.stdout}{done.stderr}"


def _expected(check: dict[str, Any], alert: str, rule: Rule) -> dict[str, Any]:
    said = {"exp_annotations": check["says"]} if "annotations" in rule else {}
    expected = [{"exp_labels": labels, **said} for labels in check["firing"].get(alert, [])]
    return {"eval_time": check["at"], "alertname": alert, "exp_alerts": expected}


def _silent(rule: Rule) -> Rule:
    return {name: value for name, value in rule.items() if name != "annotations"}
