"""What the doctor found: one line, how bad it is, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

import click

from taskflux.cli.shown import counted, painted


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, and will hurt one day or under load
    PROBLEM = "problem"  # it does not work, or a guarantee does not hold


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of one subject: what was seen (`told`), and where it is not in order, what to do."""

    subject: str
    check: str
    level: Level
    told: str
    do: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """Makes findings about one subject."""

    name: str

    def ok(self, check: str, told: str) -> Finding:
        """It is as it should be."""
        return Finding(self.name, check, Level.OK, told)

    def warning(self, check: str, told: str, do: str) -> Finding:
        """It works, and will hurt one day or under load."""
        return Finding(self.name, check, Level.WARNING, told, do)

    def problem(self, check: str, told: str, do: str) -> Finding:
        """It does not work, or a guarantee does not hold."""
        return Finding(self.name, check, Level.PROBLEM, told, do)


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings for scripts."""
    counts = Counter(finding.level for finding in findings)
    return {
        "healthy": not counts[Level.PROBLEM],
        "counts": {level.value: counts[level] for level in Level},
        "findings": [
            {
                "subject": finding.subject,
                "check": finding.check,
                "level": finding.level.value,
                "told": finding.told,
                "do": finding.do or None,
            }
            for finding in findings
        ],
    }


def print_findings(findings: Sequence[Finding], *, show_all: bool) -> None:
    """The findings for people, what is in order folded to one line for each subject."""
    width = max((len(finding.check) for finding in findings), default=0)
    for subject, found in groupby(findings, key=lambda finding: finding.subject):
        group = list(found)
        click.secho(f"\n{subject}", bold=True)
        fine = [finding for finding in group if finding.level is Level.OK]
        for finding in group if show_all else [each for each in group if each not in fine]:
            click.echo(f"  {painted(finding.level.value.ljust(7))}  {finding.check.ljust(width)}  {finding.told}")
            if finding.do:
                click.echo(f"  {' ' * 7}  {' ' * width}  → {finding.do}")
        if fine and not show_all:
            names = ", ".join(finding.check for finding in fine)
            click.echo(f"  {painted(Level.OK.value.ljust(7))}  {names}")
    counts = Counter(finding.level for finding in findings)
    told = ", ".join(counted(counts[level], level.value) for level in (Level.PROBLEM, Level.WARNING))
    click.echo(f"\n{counted(len(findings), 'check')}: {told}")
