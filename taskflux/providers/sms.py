"""The payload of an SMS task."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema, field_validator
from pydantic.alias_generators import to_camel

from taskflux.tasks.fields import said_as

_NOT_MOBILE: Final = "a mobile number is digits with the country code, e.g. 918812345678"

MOBILE_PATTERN: Final = said_as(r"^\+?[1-9][0-9]{6,14}$", _NOT_MOBILE)
"""International (E.164): country code first, no zero before it, no spaces; a + is allowed."""

_MOBILE: Final = re.compile(MOBILE_PATTERN.rstrip("$") + r"\Z")
_TAKEN: Final = ("mobiles", "name")


def _read_mobile(value: Any) -> str:
    if not isinstance(value, str) or not _MOBILE.match(value):
        raise ValueError(_NOT_MOBILE)
    return value.removeprefix("+")


Mobile = Annotated[
    str, PlainValidator(_read_mobile), WithJsonSchema({"type": "string", "pattern": MOBILE_PATTERN, "maxLength": 16})
]
"""Digits with an optional + before them; kept without it."""

_VARIABLE_NAME: Final = said_as(r"^[A-Za-z0-9_]+$", "is not a variable name: only letters, digits and _")
_TEMPLATE_ID: Final = said_as(r"^[A-Za-z0-9_-]{1,64}$", "is not a template id: 1 to 64 letters, digits, _ and -")

VariableName = Annotated[str, StringConstraints(pattern=_VARIABLE_NAME, max_length=64)]
VariableValue = Annotated[str, StringConstraints(max_length=1000)] | int | float


class Sms(BaseModel):
    """A short message: its recipient and the variables of its template. `name` is the variable of that name."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    mobile: Mobile
    name: Annotated[str, Field(max_length=200)]
    template_id: Annotated[str | None, Field(pattern=_TEMPLATE_ID)] = None
    variables: Annotated[
        dict[VariableName, VariableValue],
        Field(
            max_length=50,
            json_schema_extra={"propertyNames": {"pattern": "^[A-Za-z0-9_]{1,64}$", "not": {"enum": list(_TAKEN)}}},
        ),
    ] = {}

    @field_validator("variables")
    @classmethod
    def _variables_are_not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = [name for name in _TAKEN if name in value]
        if taken:
            raise ValueError(f"variables may not set {' or '.join(taken)}: mobile and name do")
        return value


class SendsSms(Protocol):
    """Sends short messages: over MSG91 (`msg91.Msg91`), or through the notification service."""

    async def send(self, sms: Sms, *, crqid: str, attempt: int = 1) -> str:
        """See `msg91.Msg91.send`."""
        ...
