"""The payload of an e-mail task. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Final, Protocol

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel

from taskflux.providers.addresses import MAX_RECIPIENTS, Address, Mailboxes, Recipients
from taskflux.providers.headers import LONGEST_VALUE, field
from taskflux.tasks.errors import JsonValue

MAX_TEXT: Final = 10_000_000
"""Characters of a body. What the whole message may weigh is a setting of the SMTP server's."""

OWNED_HEADERS: Final = (
    "From", "Sender", "To", "Cc", "Bcc", "Reply-To", "Subject", "Date", "Message-ID", "MIME-Version",
    "Return-Path", "Received",
)  # fmt: skip
"""Headers that follow from the other fields, the settings or the servers on the way; so do `Content-*`, `Resent-*`."""


def _either_case(text: str) -> str:
    # JSON Schema's regular expressions know no flag for this.
    return "".join(f"[{char.upper()}{char.lower()}]" if char.isalpha() else re.escape(char) for char in text)


_OWNED_NAME: Final = (
    "^(?:"
    + "|".join([*map(_either_case, OWNED_HEADERS), *(_either_case(p) + ".*" for p in ("Content-", "Resent-"))])
    + ")$"
)
_OWNED: Final = re.compile(_OWNED_NAME)

Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f" + "\x85\u2028\u2029]*$")]
"""One line of text: nothing that could begin another header."""

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=MAX_TEXT)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[!-9;-~]+$", max_length=76)]
HeaderValue = Annotated[Line, StringConstraints(max_length=LONGEST_VALUE)]


def _writable(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        field(name, value)
    return headers


def _decoded(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("content is a text in base64")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("content is not base64") from None


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


class _Payload(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Attachment(_Payload):
    """A file that goes with the mail."""

    filename: Annotated[Line, Field(min_length=1, max_length=255)]
    content_type: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$")
    ] = "application/octet-stream"
    content: Annotated[
        bytes,
        BeforeValidator(_decoded),
        PlainSerializer(_encoded, when_used="json"),
        WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
    ]

    @model_validator(mode="after")
    def _no_encoded_word(self) -> Attachment:
        # Python's email package decodes =?…?= in a file name and would write its line breaks as they are.
        if "=?" in self.filename:
            raise ValueError("filename may not contain '=?'; write it in plain characters")
        if self.content_type.lower().startswith(("message/", "multipart/")):
            raise ValueError("contentType must be one of a plain file, neither message/* nor multipart/*")
        return self


class Email(_Payload):
    """A mail: `to` one address or many, a text, and what else it may carry."""

    to: Recipients
    subject: Annotated[Line, Field(max_length=998)]
    body: Text
    html: Text | None = None
    cc: Mailboxes = []
    bcc: Mailboxes = []
    reply_to: Mailboxes = []
    headers: Annotated[
        dict[HeaderName, HeaderValue],
        AfterValidator(_writable),
        Field(
            max_length=50,
            json_schema_extra={"propertyNames": {"pattern": "^[!-9;-~]{1,76}$", "not": {"pattern": _OWNED_NAME}}},
        ),
    ] = {}
    attachments: Annotated[list[Attachment], Field(max_length=50)] = []

    @model_validator(mode="after")
    def _can_be_sent(self) -> Email:
        if len(self.recipients) > MAX_RECIPIENTS:
            raise ValueError(f"to, cc and bcc name more than {MAX_RECIPIENTS} recipients: send several mails")
        if owned := sorted(name for name in self.headers if _OWNED.match(name)):
            raise ValueError(f"headers may not set {', '.join(owned)}: the other fields and the settings do")
        return self

    @cached_property
    def recipients(self) -> list[Address]:
        """Who gets the mail, each once, in the order to, cc, bcc."""
        return list({address.envelope: address for address in [*self.to, *self.cc, *self.bcc]}.values())


class SendsMail(Protocol):
    """Sends mails: over SMTP (`smtp.Mailer`), or through the notification service."""

    async def send(
        self,
        email: Email,
        *,
        message_id: str,
        date: datetime,
        progress: Mapping[str, JsonValue] | None = None,
        attempt: int = 1,
    ) -> Mapping[str, JsonValue]:
        """See `smtp.Mailer.send`."""
        ...
