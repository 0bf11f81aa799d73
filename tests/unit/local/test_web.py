from typing import Any

import pytest

from taskflux.local.inbox.web import Sms, answer

CALL: dict[str, Any] = {
    "template_id": "65f0c0ffee65f0c0ffee65f0",
    "short_url": "0",
    "CRQID": "0199c0de-0000-7000-8000-000000000001",
    "recipients": [{"mobiles": "919812345678", "name": "Ada"}],
}


def test_a_good_call_is_accepted_with_a_request_id() -> None:
    answered = answer("key", CALL)
    assert answered.status == 200
    assert answered.body == {"type": "success", "message": answered.request_id}
    assert answered.sms == (Sms("919812345678", {"name": "Ada"}),)
    assert answered.reference == CALL["CRQID"]


def test_a_call_without_a_key_is_a_401() -> None:
    answered = answer(None, CALL)
    assert (answered.status, answered.body["code"], answered.body["hasError"]) == (401, "401", True)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"template_id": "short"}, "211"),
        ({"template_id": None}, "211"),
        ({"recipients": []}, "101"),
        ({"recipients": [{"name": "nobody"}]}, "202"),
        ({"recipients": [{"mobiles": "+919812345678"}]}, "202"),
        ({"CRQID": "a b"}, "400"),
    ],
)
def test_what_msg91_refuses_is_refused_with_http_200_and_nothing_taken(change: dict[str, Any], code: str) -> None:
    answered = answer("key", CALL | change)
    assert (answered.status, answered.body["type"], answered.body["code"]) == (200, "error", code)
    assert answered.sms == ()


def test_a_body_that_is_not_an_object_is_refused() -> None:
    assert answer("key", ["x"]).body["type"] == "error"
