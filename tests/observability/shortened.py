"""The chart's alerts with all times divided, so that a test sees in seconds what takes minutes.

Divided are: `for`, every range and offset in the expression, and what a metric of seconds is compared with. Nothing
else is changed: shares, counts, labels and the shape of the expression stay.
"""

from __future__ import annotations

import re
from typing import Final

from tests.observability.alerts import Rule

SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION: Final = r"(?:\d+[smhdw])+"


def shortened(rule: Rule, by: float, least: float) -> Rule:
    """`rule` with its times divided by `by`; no range is below `least` seconds, where `rate` sees nothing."""

    def range_of(found: re.Match[str]) -> str:
        return f"[{_text(max(least, seconds(found[1]) / by))}]"

    expr = re.sub(rf"\[({_DURATION})\]", range_of, rule["expr"])
    expr = re.sub(rf"offset ({_DURATION})", lambda found: f"offset {_text(seconds(found[1]) / by)}", expr)
    expr = re.sub(r"(_seconds(?:\{[^}]*\})?\)+ > )(\d+)", lambda found: f"{found[1]}{float(found[2]) / by:g}", expr)
    return {**rule, "expr": expr, "for": _text(seconds(rule["for"]) / by)}


def seconds(duration: str) -> float:
    """6h30m → 23400."""
    return sum(float(number) * SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhdw])", duration))


def _text(duration: float) -> str:
    return f"{round(duration * 1000)}ms"
