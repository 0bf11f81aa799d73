"""The chart's alerts as rules for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
ALERTS: Final = ROOT / "charts/taskflux/alerts"
RUNBOOKS: Final = ROOT / "docs/runbooks"
CASES: Final = Path(__file__).with_name("alerts")

Rule = Mapping[str, Any]


def rules() -> dict[str, Rule]:
    """Name → rule, each from its file."""
    found = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted(ALERTS.glob("*.yaml"))}
    assert found, f"no alerts in {ALERTS}"
    return found


def write_rules(rules: Mapping[str, Rule], file: Path) -> None:
    """A rule file of these alerts, as the chart's template groups them."""
    file.write_text(yaml.safe_dump({"groups": [{"name": "taskflux", "rules": list(rules.values())}]}))
