"""`taskflux doctor`: every trap that a deployment can fall into, each with what to do about it.

One module for each subject: it asks, and a pure function judges the answers. Run it with the environment of the
deployment that it shall look at: settings differ, so it sees what that one would.
"""

from __future__ import annotations

import asyncio
import logging
import sys

import click

from taskflux.cli.doctor.findings import Finding, Level, document, print_findings
from taskflux.cli.program import FAILED, OK
from taskflux.cli.shown import json_option, print_json


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Show what is in order, too, one line each.")
@json_option
def doctor(show_all: bool, as_json: bool) -> None:
    """Check the settings, PostgreSQL, Kafka, Redis, the providers, and what runs.

    Ends with 1 if it found a problem; warnings do not count. It changes nothing and sends nothing.
    """
    from taskflux.cli.doctor.examination import examine

    # What a library says beside it would stand between the findings, which say it better.
    logging.disable(logging.CRITICAL)
    findings = asyncio.run(examine())
    if as_json:
        print_json(document(findings))
    else:
        print_findings(findings, show_all=show_all)
    sys.exit(FAILED if any(finding.level is Level.PROBLEM for finding in findings) else OK)


__all__ = ["Finding", "doctor"]
