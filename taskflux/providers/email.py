"""The payload of an e-mail task. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import decode_rfc2231
from functools import cached_property
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from taskflux.providers.addresses import MAX_RECIPIENTS, Address, Mailboxes, Recipients
from taskflux.providers.headers import LONGEST_VALUE, field, mime_field
from taskflux.tasks.errors import JsonValue
from taskflux.tasks.fields import said_as

MAX_TEXT: Final = 10_000_000
"""Characters of a body. The limit of the whole message is a setting of the SMTP server."""

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

_LINE: Final = said_as(
    r"^[^\x00-\x1f\x7f" + "\x85\u2028\u2029]*$", "may not have line breaks or other control characters"
)
_NO_NUL: Final = said_as(r"^[^\x00]*$", "may not have NUL characters")
_HEADER_NAME: Final = said_as(r"^[!-9;-~]+$", "is not a header name: ASCII without spaces and colons, such as X-Order")
Line = Annotated[str, StringConstraints(pattern=_LINE)]
"""One line of text: nothing that could begin another header."""

Text = Annotated[str, StringConstraints(pattern=_NO_NUL, max_length=MAX_TEXT)]
HeaderName = Annotated[str, StringConstraints(pattern=_HEADER_NAME, max_length=76)]
HeaderValue = Annotated[Line, StringConstraints(max_length=LONGEST_VALUE)]


def _decoded(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("content is a text in base64")
    text = "".join(value.split())
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"content is not base64{_mistake(text)}") from None


def _mistake(text: str) -> str:
    """What a common mistake is, if it is one."""
    if text[:5].lower() == "data:":
        return ": it is a data: URI, send only the part after the comma"
    if "-" in text or "_" in text:
        return ": it is base64url, write + and / instead of - and _"
    if text.isascii() and len(text.rstrip("=")) % 4 and re.fullmatch("[A-Za-z0-9+/]*", text):
        return ": it is incomplete, or its final = are missing"
    return ""


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


class _Payload(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


_TYPE: Final = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_ATTRIBUTE: Final = r"[A-Za-z0-9!#$&^_.+-]+\*?"
_QUOTED: Final = r'"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"'
_PARAMETER: Final = rf"""; *(?:({_ATTRIBUTE})=({_QUOTED}|[^\s";\x00-\x1f\x7f]+) *)?"""
_CONTENT_TYPE: Final = said_as(
    rf"^{_TYPE}/{_TYPE} *(?:{_PARAMETER})*$",
    'is not a media type such as image/png or text/calendar; method=REQUEST; charset="utf-8"',
)
_CONTENT_ID: Final = said_as(
    r"^(?:<[!-;=?-~]{1,200}>|[!-;=?-~]{1,200})$",
    "is not an id of plain ASCII characters without spaces, such as logo@example.org",
)


class ContentType(NamedTuple):
    """A parsed media type with its parameters: `text/calendar; method=REQUEST`."""

    media_type: str
    parameters: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> ContentType:
        """Parse a Content-Type that `Attachment` has accepted."""
        media_type, _, rest = text.partition(";")
        found = re.finditer(_PARAMETER, f";{rest}")
        return cls(media_type.strip(), tuple(_parameter(each[1], each[2]) for each in found if each[1]))


def _parameter(name: str, value: str) -> tuple[str, str]:
    if value.startswith('"'):
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    if name.endswith("*"):  # RFC 2231, 4: charset'language'text
        charset, _, text = decode_rfc2231(value)
        try:
            value = unquote(text, charset or "utf-8")
        except (LookupError, UnicodeError):
            raise ValueError(f"contentType has the parameter {name} in a character set that cannot be read") from None
    return name.rstrip("*"), value


class Attachment(_Payload):
    """A file sent with the mail: attached, or shown inline in the html as `<img src="cid:…">`."""

    filename: Annotated[Line, Field(min_length=1, max_length=255)]
    content_type: Annotated[
        str,
        Field(
            max_length=900,
            pattern=_CONTENT_TYPE,
            description="a media type, with parameters: text/calendar; method=REQUEST; charset=utf-8",
        ),
    ] = "application/octet-stream"
    content: Annotated[
        bytes,
        BeforeValidator(_decoded),
        PlainSerializer(_encoded, when_used="json"),
        WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
    ]
    content_id: Annotated[
        str | None,
        Field(
            pattern=_CONTENT_ID,
            description='its name after "cid:" in the html, such as logo@example.org; it is then shown inline',
        ),
    ] = None
    disposition: Annotated[
        Literal["attachment", "inline"] | None,
        Field(description="whether it is shown in the mail or beside it; unset: inline if it has a contentId"),
    ] = None

    @field_validator("filename")
    @classmethod
    def _no_encoded_word(cls, value: str) -> str:
        # A mail program may decode =?…?= in a file name, including line breaks encoded in it.
        if "=?" in value:
            raise ValueError("filename may not contain '=?'; write it in plain characters")
        return value

    @field_validator("content_type")
    @classmethod
    def _plain_file(cls, value: str) -> str:
        media_type, parameters = ContentType.parse(value)
        if media_type.lower().startswith(("message/", "multipart/")):
            raise ValueError("contentType must be one of a plain file, neither message/* nor multipart/*")
        names = [name.lower() for name, _ in parameters]
        if len(set(names)) < len(names):
            raise ValueError("contentType names a parameter twice")
        mime_field("contentType", media_type, parameters)
        return value

    @property
    def cid(self) -> str | None:
        """`content_id` without < and >, and without the prefix cid:, which belongs only in the html."""
        return re.sub("(?i)^cid:(?=.)", "", self.content_id.strip("<>")) if self.content_id is not None else None

    @property
    def inline(self) -> bool:
        """Whether it is shown within the mail."""
        return (self.disposition or ("inline" if self.content_id is not None else "attachment")) == "inline"


def _empty(default: list[Any] | dict[str, Any]) -> Any:
    """A field that may be left out: pydantic copies a mutable default, and slowly."""
    return Field(default_factory=type(default), json_schema_extra={"default": default})


def _can_be_written(headers: dict[str, str]) -> dict[str, str]:
    if owned := sorted(name for name in headers if _OWNED.match(name)):
        raise ValueError(f"headers may not set {', '.join(owned)}: the other fields and the settings do")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("headers has the same name twice, in upper and lower case")
    for name, value in headers.items():
        field(name, value)
    return headers


def _given(field: str) -> dict[str, Any]:
    return {"required": [field], "properties": {field: {"type": "string"}}}


class Email(_Payload):
    """A mail: `to` one address or many, a text or html, and optional fields."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_given("body"), _given("html")]})

    to: Recipients
    subject: Annotated[Line, Field(max_length=998)]
    html: Text | None = None
    body: Annotated[
        Text | None, Field(validate_default=True, description="the mail as plain text; unset: made from the html")
    ] = None
    cc: Mailboxes = _empty([])
    bcc: Mailboxes = _empty([])
    reply_to: Mailboxes = _empty([])
    headers: Annotated[
        dict[HeaderName, HeaderValue],
        Field(
            max_length=50,
            json_schema_extra={
                "default": {},
                "propertyNames": {"pattern": "^[!-9;-~]{1,76}$", "not": {"pattern": _OWNED_NAME}},
            },
        ),
        AfterValidator(_can_be_written),
    ] = Field(default_factory=dict)
    attachments: Annotated[list[Attachment], Field(max_length=50)] = _empty([])

    @field_validator("attachments")
    @classmethod
    def _no_content_id_twice(cls, attachments: list[Attachment]) -> list[Attachment]:
        cids = [attachment.cid for attachment in attachments if attachment.cid is not None]
        if len(set(cids)) < len(cids):
            raise ValueError("two of the attachments have the same contentId")
        return attachments

    @field_validator("body")
    @classmethod
    def _has_a_text_or_html(cls, body: str | None, read: ValidationInfo) -> str | None:
        if body is None and read.data.get("html", "") is None:
            raise ValueError("give body or html, or both")
        return body

    @model_validator(mode="after")
    def _can_be_sent(self) -> Email:
        named = len(self.to) + len(self.cc) + len(self.bcc)
        if named > MAX_RECIPIENTS and len(self.recipients) > MAX_RECIPIENTS:
            raise ValueError(f"to, cc and bcc name more than {MAX_RECIPIENTS} recipients: send several mails")
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
