from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest

from taskflux.providers.msg91 import MalformedReports, read_reports
from taskflux.tasks.delivery import DeliveryReport, DeliveryStatus

TASK = UUID("0199f000-0000-7000-8000-000000000001")
DATE = "2026-03-01 12:30:00"


def flat(**fields: Any) -> dict[str, Any]:
    plain = {"date": DATE, "number": "919876543210", "requestId": "req-1", "CRQID": str(TASK), "status": "1"}
    return plain | {"desc": "DELIVERED"} | fields


def read(document: Any) -> tuple[list[DeliveryReport], int]:
    return read_reports(json.dumps(document).encode(), form=False)


def test_the_flat_form_is_read_without_the_number() -> None:
    [report], foreign = read(flat())
    assert report == DeliveryReport(TASK, 0, DeliveryStatus.DELIVERED, "1", "DELIVERED", "req-1", DATE)
    assert foreign == 0
    assert "9198" not in repr(report)


def test_the_form_with_groups_is_read() -> None:
    inner = {"date": DATE, "number": "919876543210", "status": "2", "desc": "FAILED", "CRQID": f"{TASK}.3"}
    data = json.dumps([{"requestId": "req-2", "userId": "1", "report": [inner]}])
    [report], _ = read_reports(urlencode({"data": data}).encode(), form=True)
    assert report == DeliveryReport(TASK, 3, DeliveryStatus.FAILED, "2", "FAILED", "req-2", DATE)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("1", "delivered"), (1, "delivered"), ("2", "failed"), (9, "ndnc"), ("16", "rejected"), ("25", "rejected"),
        ("17", "blocked"), ("Delivered", "delivered"), ("5", "accepted"), ("what", "accepted"), (None, "accepted"),
    ],
)  # fmt: skip
def test_a_code_says_what_became_of_the_message(code: object, status: str) -> None:
    [report], _ = read([flat(status=code)])
    assert report.status == status


def test_of_several_reports_about_a_task_the_one_that_says_most_is_kept_in_any_order() -> None:
    entries = [flat(status="1", date="2026-03-01 12:00:00"), flat(status="5"), flat(status="2"), flat(status="16")]
    for order in (entries, entries[::-1], entries[2:] + entries[:2]):
        [report], _ = read(order)
        assert report.status is DeliveryStatus.DELIVERED


@pytest.mark.parametrize(
    "reference", [None, "", "no-uuid", f"{TASK}.0", f"{TASK}.x", f"{TASK}.1234567890", 7, [], True]
)
def test_a_report_that_names_no_task_is_counted(reference: object) -> None:
    assert read([flat(CRQID=reference), flat()])[1] == 1


def test_words_are_made_storable_and_name_nobody() -> None:
    [report], _ = read(flat(desc="a|b\0\ud800 to +919876543210 " + "x" * 500, requestId="\0"))
    assert report.description.startswith("a/b to … xxx")
    assert len(report.description) <= 200
    assert report.request_id == ""


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (b"{", False), (b"\xff", False), (b"[" * 100_000, False), (b"[1]", False), (b'"x"', False), (b"null", False),
        (b'{"report": [1]}', False), (b"other=1", True), (b"data=%7B", True), (b"data=1&data=2", True), (b"", True),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_what_is_in_neither_form_is_refused(body: bytes, form: bool) -> None:
    with pytest.raises(MalformedReports):
        read_reports(body, form=form)
