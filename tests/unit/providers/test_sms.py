from typing import Any

import jsonschema_rs
import pytest
from pydantic import TypeAdapter, ValidationError

from taskflux.providers.sms import Sms

SMS: dict[str, Any] = {"mobile": "+919876543210", "name": "Ann"}
SCHEMA = jsonschema_rs.validator_for(TypeAdapter(Sms).json_schema(by_alias=True))


@pytest.mark.parametrize("mobile", ["919876543210", "+919876543210"])
def test_a_mobile_number_is_kept_without_its_plus(mobile: str) -> None:
    assert Sms.model_validate(SMS | {"mobile": mobile}).mobile == "919876543210"


@pytest.mark.parametrize(
    "fields",
    [
        {"mobile": "0919876543210"},
        {"mobile": "+91 98765 43210"},
        {"mobile": "12345"},
        {"mobile": "+9198765432101234567"},
        {"mobile": "919876543210\n"},
        {"mobile": 919876543210},
        {"variables": {"mobiles": "1"}},
        {"variables": {"name": "Bob"}},
        {"variables": {"a b": "1"}},
        {"variables": {"a": ["x"]}},
        {"templateId": "../x"},
        {"text": "hello"},
    ],
)
def test_what_cannot_be_sent_is_refused_by_schema_and_model_alike(fields: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(SMS | fields)
    with pytest.raises(ValidationError):
        Sms.model_validate(SMS | fields)


def test_variables_may_be_texts_and_numbers() -> None:
    fields = SMS | {"templateId": "a" * 24, "variables": {"VAR1": "x", "amount": 12, "rate": 1.5}}
    assert SCHEMA.is_valid(fields)
    assert Sms.model_validate(fields).variables == {"VAR1": "x", "amount": 12, "rate": 1.5}
