"""The payload of an SMS task."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

MOBILE_PATTERN: Final = r"^\+?[1-9][0-9]{6,14}$"
"""International (E.164): country code first, no zero before it, no spaces; a + is allowed."""

_MOBILE: Final = re.compile(MOBILE_PATTERN.rstrip("$") + r"\Z")
_TAKEN: Final = ("mobiles", "name")


def _read_mobile(value: Any) -> str:
    if not isinstance(value, str) or not _MOBILE.match(value):
        raise ValueError("a mobile number is written internationally, digits only, such as +919876543210")
    return value.removeprefix("+")


Mobile = Annotated[
    str, PlainValidator(_read_mobile), WithJsonSchema({"type": "string", "pattern": MOBILE_PATTERN, "maxLength": 16})
]
"""Digits with an optional + before them; kept without it."""

VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$", max_length=64)]
VariableValue = Annotated[str, StringConstraints(max_length=1000)] | int | float


class Sms(BaseModel):
    """A short message: whom to, and what fills the template. `name` is the template's variable of that name."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    mobile: Mobile
    name: Annotated[str, Field(max_length=200)]
    template_id: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = None
    variables: Annotated[
        dict[VariableName, VariableValue],
        Field(
            max_length=50,
            json_schema_extra={"propertyNames": {"pattern": "^[A-Za-z0-9_]{1,64}$", "not": {"enum": list(_TAKEN)}}},
        ),
    ] = {}

    @model_validator(mode="after")
    def _variables_are_not_ours(self) -> Sms:
        taken = [name for name in _TAKEN if name in self.variables]
        if taken:
            raise ValueError(f"variables may not set {' or '.join(taken)}: mobile and name do")
        return self


class SendsSms(Protocol):
    """Sends short messages: over MSG91 (`msg91.Msg91`), or through the notification service."""

    async def send(self, sms: Sms, *, crqid: str, attempt: int = 1) -> str:
        """See `msg91.Msg91.send`."""
        ...
