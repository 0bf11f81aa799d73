"""The payload of an e-mail task, and its addresses. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Final, Protocol

import idna
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel

from taskflux.providers.headers import LONGEST_VALUE, field
from taskflux.tasks.errors import JsonValue

MAX_RECIPIENTS: Final = 500
"""Recipients of one mail, to, cc and bcc together."""

_PART: Final = r'[^\s@<>()\[\],;:\\"\x00-\x1f\x7f]'
_SPEC: Final = rf"{_PART}+@{_PART}+"
_NAME: Final = r"[^@<>\x00-\x1f\x7f]*"

PATTERN: Final = rf"^(?:{_SPEC}|{_NAME}<{_SPEC}>)$"
"""What a JSON schema can say of a mailbox: one @, no control character, an optional display name before <…>."""

# RFC 5322 dot-atom, widened by RFC 6531 to anything beyond ASCII that is neither a control nor a space.
_ATOM: Final = r"(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]|[^\x00-\x9f\s])+"
_LOCAL: Final = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_DOMAIN: Final = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_NAMED: Final = re.compile(rf"({_NAME})<([^<>]*)>")


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox. `domain` is as it was written; `envelope` is what an SMTP server is told."""

    local: str
    domain: str
    name: str = ""

    @classmethod
    def parse(cls, text: object) -> Address:
        """Read `ann@example.org` or `Ann Lee <ann@example.org>`; an address stays as it is.

        Raises:
            ValueError: a sentence on what is wrong; it does not repeat the address.
        """
        if isinstance(text, Address):
            return text
        if not isinstance(text, str):
            raise ValueError("an address is a text, such as ann@example.org")
        named = _NAMED.fullmatch(text.strip())
        name, spec = (_unquoted(named[1].strip()), named[2].strip()) if named else ("", text.strip())
        local, at, domain = spec.rpartition("@")
        if not at or "@" in local:
            raise ValueError("an address has one @, such as ann@example.org")
        if not _LOCAL.fullmatch(local) or len(local.encode()) > 64:
            raise ValueError("the part before the @ has a character that an address cannot have, or is too long")
        _ascii_domain(domain)
        return cls(local, domain, name)

    @property
    def spec(self) -> str:
        """`local@domain`, as it was written."""
        return f"{self.local}@{self.domain}"

    @property
    def envelope(self) -> str:
        """`local@domain` with the domain in ASCII (IDNA 2008)."""
        return f"{self.local}@{_ascii_domain(self.domain)}"

    @property
    def needs_utf8(self) -> bool:
        """Whether only a server with SMTPUTF8 (RFC 6531) can be told this address."""
        return not self.local.isascii()

    def __str__(self) -> str:
        if not self.name:
            return self.spec
        quoted = self.name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}" <{self.spec}>'


def _unquoted(name: str) -> str:
    if len(name) >= 2 and name[0] == name[-1] == '"':
        return re.sub(r"\\(.)", r"\1", name[1:-1])
    return name


def _ascii_domain(domain: str) -> str:
    try:
        ascii_domain = domain.lower() if domain.isascii() else idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise ValueError("the part after the @ is no domain name that can be written in ASCII (IDNA)") from None
    if len(ascii_domain) > 253 or not _DOMAIN.fullmatch(ascii_domain):
        raise ValueError("the part after the @ is not a domain name")
    return ascii_domain


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str | Address) else value


_SCHEMA: Final[dict[str, Any]] = {"type": "string", "maxLength": 530, "pattern": PATTERN}


def _one_or(least: int) -> WithJsonSchema:
    many = {"type": "array", "items": _SCHEMA, "minItems": least, "maxItems": MAX_RECIPIENTS}
    return WithJsonSchema({"anyOf": [_SCHEMA, many]})


Mailbox = Annotated[Address, PlainValidator(Address.parse), PlainSerializer(str), WithJsonSchema(_SCHEMA)]
"""A field that is given as a text and read as an `Address`."""

Mailboxes = Annotated[list[Mailbox], BeforeValidator(_several), Field(max_length=MAX_RECIPIENTS), _one_or(0)]
"""A field that takes one address or a list of them."""

Recipients = Annotated[
    list[Mailbox], BeforeValidator(_several), Field(min_length=1, max_length=MAX_RECIPIENTS), _one_or(1)
]
"""The same, and at least one."""


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
