from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from pydantic import ValidationError

from taskflux.providers.msg91 import MalformedReports, Msg91Settings, classify, connect, own_faults, read_reports
from taskflux.providers.sms import Sms
from taskflux.tasks.decision import LONGEST_DELAY
from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, TaskError, Transient, Unavailable
from taskflux.tasks.model import DeliveryReport, DeliveryStatus


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Msg91Settings.model_fields.values())


@pytest.mark.parametrize(
    "fields", [{"base_url": "control.msg91.com"}, {"auth_key": "a\r\nb"}, {"short_url": "2"}, {"rate": 0}]
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Msg91Settings.model_validate(fields)


async def test_no_auth_key_stops_the_start() -> None:
    with pytest.raises(Misconfigured, match="TASKFLUX_MSG91__AUTH_KEY"):
        async with connect.connect(Msg91Settings()):
            pass


def meaning(status: int, answer: Any, **more: Any) -> str | TaskError:
    return classify(status, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), **more)


def error(message: str, code: str | None = None) -> dict[str, str]:
    return {"type": "error", "message": message} | ({"code": code} if code else {})


UNAUTHORIZED = {"status": "fail", "hasError": True, "errors": "Unauthorized", "code": "401"}


def test_success_is_the_request_id() -> None:
    assert meaning(200, {"type": "success", "message": "3763646c3058373530393938"}) == "3763646c3058373530393938"


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (200, error("Invalid mobile number", "202"), Permanent),
        (200, error("mobile missing", "101"), Permanent),
        (400, error("message too long", "310"), Permanent),
        (200, error("authkey invalid", "207"), Misconfigured),
        (200, error("authkey missing", "106"), Misconfigured),
        (401, UNAUTHORIZED | {"apiError": "201"}, Misconfigured),
        (401, UNAUTHORIZED | {"apiError": "418"}, Misconfigured),
        (401, UNAUTHORIZED, Misconfigured),
        (200, UNAUTHORIZED | {"apiError": "418"}, Misconfigured),
        (200, error("address not allowed", "208"), Misconfigured),
        (200, error("sender id invalid", "203"), Misconfigured),
        (200, error("template id missing", "211"), Misconfigured),
        (200, error("account expired", "302"), Misconfigured),
        (200, error("account blocked", "303"), Misconfigured),
        (200, error("no money", "301"), Misconfigured),
        (200, error("Insufficient balance"), Misconfigured),
        (200, error("You have no credit left"), Misconfigured),
        (200, error("Flow not approved"), Misconfigured),
        (200, error("template pending"), Misconfigured),
        (200, error("same request", "311"), Ambiguous),
        (200, error("something new"), Permanent),
        (400, error("something new", "999"), Permanent),
        (500, error("something broke"), Transient),
        (500, b"<html>", Transient),
        (429, error("slow down"), Transient),
        (429, b"", Transient),
        (502, b"<html>", Unavailable),
        (503, b"", Unavailable),
        (504, b"<html>", Ambiguous),
        (200, b"<html>thanks</html>", Ambiguous),
        (200, b"", Ambiguous),
        (200, b"\xff\xfe", Ambiguous),
        (200, b"[]", Ambiguous),
        (200, b'{"ok": true}', Ambiguous),
        (200, b"[" * 100_000, Ambiguous),
        (404, b"<html>", Misconfigured),
        (302, b"", Misconfigured),
        (403, b"forbidden", Misconfigured),
        (422, b"no", Permanent),
    ],
)
def test_every_answer_has_its_meaning(status: int, answer: Any, expected: type[TaskError]) -> None:
    assert type(meaning(status, answer)) is expected


OWN = Sms(mobile="919876543210", name="Ann", template_id="own")
CONFIGURED = Sms(mobile="919876543210", name="Ann")


@pytest.mark.parametrize(
    ("answer", "sms", "sender", "expected"),
    [
        (error("template id missing", "211"), OWN, None, Permanent),
        (error("template id missing", "211"), OWN, "TSKFLX", Permanent),
        (error("template id missing", "211"), CONFIGURED, None, Misconfigured),
        (error("Flow not approved"), OWN, None, Permanent),
        (error("Flow not approved"), CONFIGURED, None, Misconfigured),
        (error("sender id invalid", "203"), OWN, None, Permanent),
        (error("sender id invalid", "203"), OWN, "TSKFLX", Misconfigured),
        (error("sender id invalid", "203"), CONFIGURED, None, Misconfigured),
        (error("authkey invalid", "207"), OWN, None, Misconfigured),
        (error("Insufficient balance"), OWN, None, Misconfigured),
        (UNAUTHORIZED, OWN, None, Misconfigured),
    ],
)
def test_a_template_that_the_task_names_is_the_task_s_own_fault_and_the_configured_one_is_not(
    answer: Any, sms: Sms, sender: str | None, expected: type[TaskError]
) -> None:
    outcome = meaning(200, answer, own=own_faults(sms, Msg91Settings(sender=sender)))
    assert type(outcome) is expected


@pytest.mark.parametrize("quoted", ["credit-pending", "Your balance is insufficient", "not approved"])
def test_words_of_the_task_that_an_answer_repeats_are_ignored(quoted: str) -> None:
    assert type(meaning(200, error(f"Invalid value {quoted}"), quoted=["Ann", quoted])) is Permanent
    said = error(f"Insufficient balance, nothing is sent for {quoted}")
    assert type(meaning(200, said, quoted=[quoted])) is Misconfigured


def test_the_reason_says_what_the_service_said() -> None:
    outcome = meaning(200, error("Invalid\nmobile", "202"))
    assert isinstance(outcome, TaskError)
    assert outcome.reason == "the SMS service said: Invalid mobile (202)"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("17", 17.0),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("²", None),
        ("٢", None),
        ("-1", None),
        ("+5", None),
        ("9" * 400, LONGEST_DELAY),
        ("Sun, 01 Mar 9999 12:00:30 GMT", LONGEST_DELAY),
        ("Sun, 01 Mar 2026 12:00:30 +9999999999999", None),
        ("Sun, 99 Mar 99999999999 99:99:99 GMT", None),
        (None, None),
    ],
)
def test_retry_after_is_honoured_as_seconds_and_as_a_date(header: str | None, seconds: float | None) -> None:
    outcome = meaning(429, b"", retry_after=header, now=datetime(2026, 3, 1, 12, tzinfo=UTC))
    assert isinstance(outcome, Transient)
    assert outcome.retry_after == seconds


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


@pytest.mark.parametrize("nothing", [None, "null", "NULL", " null ", "", [], {}, True])
def test_an_id_that_is_the_word_null_is_missing(nothing: object) -> None:
    assert meaning(200, {"type": "success", "message": nothing}) == ""
    [report], _ = read(flat(requestId=nothing))
    assert report.request_id == ""


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("1", "delivered"), (1, "delivered"), ("2", "failed"), (9, "ndnc"), ("16", "rejected"), ("25", "rejected"),
        ("17", "blocked"), ("Delivered", "delivered"), ("5", "accepted"), ("what", "accepted"), (None, "accepted"),
    ],
)  # fmt: skip
def test_a_code_is_the_state_of_the_message(code: object, status: str) -> None:
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


def test_texts_are_made_storable_and_contain_no_number() -> None:
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


@pytest.mark.parametrize("form", [True, False])
def test_reports_are_counted_before_they_are_built(form: bool) -> None:
    crowded = b"[" + b"[]," * 600_000 + b"[]]"
    with pytest.raises(MalformedReports, match="more than 100,000 values"):
        read_reports(b"data=" + crowded if form else crowded, form=form)
    with pytest.raises(MalformedReports, match="64 deep"):
        read_reports(b"data=" + b"[" * 900 if form else b"[" * 900, form=form)
