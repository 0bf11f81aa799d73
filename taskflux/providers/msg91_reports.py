"""What MSG91's delivery reports say. Pure.

v2: a form whose field `data` is JSON, `[{"requestId", "report": [{"date", "number", "status", "desc", "CRQID"}]}]`.
v3: flat JSON, `{"date", "number", "requestId", "CRQID", "status", "desc"}`, or several of them in an array.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qs
from uuid import UUID

from taskflux.tasks.delivery import DeliveryReport, DeliveryStatus

_STATUS: Final = {
    "1": DeliveryStatus.DELIVERED,
    "2": DeliveryStatus.FAILED,
    "9": DeliveryStatus.NDNC,
    "16": DeliveryStatus.REJECTED,
    "25": DeliveryStatus.REJECTED,
    "17": DeliveryStatus.BLOCKED,
    **{status.value: status for status in DeliveryStatus},
}
"""By code, and by word where one stands in its place. Any other code is a stage on the way."""

_REFERENCE: Final = re.compile(
    r"(?P<task>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})(?:\.(?P<replay>[1-9][0-9]{0,8}))?"
)
_NUMBER: Final = re.compile(r"\+?\d{7,}")
MOST_REPORTS: Final = 10_000


class MalformedReports(Exception):
    """The body is in neither form."""


def read_reports(body: bytes, *, form: bool) -> tuple[list[DeliveryReport], int]:
    """The reports in a body that carry an id of ours, the heaviest of each task, and how many carried none.

    Raises:
        MalformedReports: with a sentence that quotes nothing.
    """
    found: dict[tuple[UUID, int], DeliveryReport] = {}
    foreign = 0
    for count, entry in enumerate(_entries(_document(body, form=form))):
        if count == MOST_REPORTS:
            raise MalformedReports(f"there are more than {MOST_REPORTS:,} reports")
        report = _report(entry)
        if report is None:
            foreign += 1
            continue
        key = (report.task, report.replay)
        if key not in found or report.weight > found[key].weight:
            found[key] = report
    return list(found.values()), foreign


def _document(body: bytes, *, form: bool) -> Any:
    try:
        text = body.decode("utf-8")
        if form:
            [text] = parse_qs(text, strict_parsing=True, max_num_fields=20)["data"]
        return json.loads(text)
    except KeyError:
        raise MalformedReports("the form has no field data") from None
    except (ValueError, RecursionError):
        raise MalformedReports("it is not JSON") from None


def _entries(document: Any) -> Iterator[Mapping[str, Any]]:
    """Every single report, with what stands beside a group of them."""
    for outer in document if isinstance(document, list) else [document]:
        if not isinstance(outer, dict):
            raise MalformedReports("a report is a JSON object")
        inner = outer.get("report")
        if inner is None:
            yield outer
            continue
        for entry in inner if isinstance(inner, list) else [inner]:
            if not isinstance(entry, dict):
                raise MalformedReports("a report is a JSON object")
            yield {**outer, **entry}


def _report(entry: Mapping[str, Any]) -> DeliveryReport | None:
    reference = _REFERENCE.fullmatch(_text(entry.get("CRQID"), 80).lower())
    if reference is None:
        return None
    code = _text(entry.get("status"), 20)
    return DeliveryReport(
        UUID(reference["task"]),
        int(reference["replay"] or 0),
        _STATUS.get(code.lower(), DeliveryStatus.ACCEPTED),
        code,
        # The words are the operator's, and may name whom it could not reach.
        _NUMBER.sub("…", _text(entry.get("desc"), 200)),
        _text(entry.get("requestId"), 100),
        _text(entry.get("date"), 40),
    )


def _text(value: Any, longest: int) -> str:
    """One printable line: it is kept in PostgreSQL, which takes no NUL, and in a timeline, whose notes hold no `|`."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
    return line.replace("|", "/")[:longest]
